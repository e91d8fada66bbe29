"""Tilting the distribution: by the gradient of a log-likelihood or an energy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.transport.field import Field, FunctionField
from sciflow.transport.guidance.base import Guidance
from sciflow.transport.guidance.schedule import Schedule, strength_at, strength_of
from sciflow.transport.paths.base import AffinePath

__all__ = ["Classifier", "EndpointEnergy", "Tilt", "affine_path", "data_of", "tangent"]


class Tilt(Guidance):
    r"""p_t(x) exp(strength l(t, x)) in the place of p_t(x): l is added to the log-density, its gradient to the score.

    On x_t = a x_1 + s x_0 with unit normal noise the velocity is affine in the score, so

        v' = v + strength s (a' s - a s') / a  grad l(t, x),

    (1 - t) / t on the linear path. At strength 1 this is exact if l(t, x) = log p(y | x_t = x), up to a constant: the log of
    the expected likelihood given the noisy point, as a classifier on noisy points learns it. Such an l is flat at t = 0, where
    the factor is infinite and only their product has a limit: both are evaluated no earlier than at t = `smallest`. An l that
    is not flat there makes the first steps stiff.

    Arguments:
        log_likelihood: a module (t (B,), x (B, *event)) -> (B,); saved with the flow if it is `Recorded`.
        strength: a number or a `Schedule`.

    Functions may know rows by their number, so adaptive steppers keep all rows until the last one has arrived, here and for
    `EndpointEnergy`; a `Classifier` lets them go.

    Points are as the flow follows them: with a target shift x_t ends at the shifted data.

    Raises `UserError` for paths that are not affine and noise that is not normal.

    Source: Score-Based Generative Modeling through Stochastic Differential Equations, Song et al. 2020, arXiv 2011.13456;
    Guided Flows for Generative Modeling and Decision Making, Zheng et al. 2023, arXiv 2311.13443 (the factor).
    """

    def __init__(self, log_likelihood: nn.Module, strength: float | Schedule = 1.0, *, smallest: float = 1e-3) -> None:
        super().__init__()
        self.log_likelihood, self.strength, self.smallest = log_likelihood, strength_of(strength), smallest

    def forward(self, field: Field) -> Field:
        return self.tilted(field, lambda t, x: self.log_likelihood(t, x))

    def tilted(
        self, field: Field, log_likelihood: Callable[[Tensor, Tensor], Tensor], again: Callable[[Field], Field] | None = None
    ) -> Field:
        """The field with a function (t (B,), x) -> (B,) added to the log-density; `again`: see `FunctionField`."""
        if self.strength == 0:
            return field
        path = affine_path(self, field)
        field.need_score()

        def guided(t: Tensor, x: Tensor) -> Tensor:
            late = t.clamp_min(self.smallest)
            gradient = _gradient(lambda point: log_likelihood(late, point), x)
            a, s, da, ds = path.at(late, x)
            factor = s * (da * s - a * ds) / a
            return field(t, x) + tangent(field, x, strength_at(self.strength, t, x) * factor * gradient)

        return FunctionField(guided, field, again)


class Classifier(Tilt):
    r"""Tilt by log p(class | x_t) of a classifier trained on noisy points: its logits (t (B,), x) -> (B, classes).

    Arguments:
        classifier: the network of logits.
        label: the class that is wanted, a number.

    Source: Diffusion Models Beat GANs on Image Synthesis, Dhariwal and Nichol 2021, arXiv 2105.05233.
    """

    def __init__(self, classifier: nn.Module, label: int, strength: float | Schedule = 1.0, *, smallest: float = 1e-3) -> None:
        super().__init__(classifier, strength, smallest=smallest)
        self.label = label

    def forward(self, field: Field) -> Field:
        return self.tilted(field, lambda t, x: torch.log_softmax(self.log_likelihood(t, x), -1)[:, self.label], self.forward)


class EndpointEnergy(Guidance):
    r"""Tilt by an energy of the data, p(x_1) exp(-strength E(x_1)), with E taken at the expected endpoint:

        v' = v - strength s (a' s - a s') / a  grad_x E(E[x_1 | x_t = x]).

    No training on noisy points, but E of the mean stands for the mean of exp(-E): the draws follow the tilted density only
    for linear energies. An estimate, to be corrected by weights: the guided flow has a density.

    Arguments:
        energy: a module x_1 (B, *event) -> (B,), dimensionless; saved with the flow if it is `Recorded`.
        strength: a number or a `Schedule`.

    Raises `UserError` for paths that are not affine and noise that is not normal.

    Source: Diffusion Posterior Sampling for General Noisy Inverse Problems, Chung et al. 2022, arXiv 2209.14687.
    """

    def __init__(self, energy: nn.Module, strength: float | Schedule = 1.0, *, smallest: float = 1e-2) -> None:
        super().__init__()
        self.energy, self.strength, self.smallest = energy, strength_of(strength), smallest

    def forward(self, field: Field) -> Field:
        tilt = Tilt(self.energy, self.strength, smallest=self.smallest)
        return tilt.tilted(field, lambda t, x: -self.energy(data_of(field, field.endpoint(t, x))))


def data_of(field: Field, endpoint: Tensor) -> Tensor:
    """Where the transport ends, as data: without the learned target shift."""
    return endpoint if field.shifts[1] is None else endpoint - field.shifts[1].to(endpoint.dtype)


def affine_path(guidance: Guidance, field: Field) -> AffinePath:
    if not isinstance(field.path, AffinePath):
        raise UserError(f"{type(guidance).__name__} needs an affine path to turn a score into a velocity, not {field.path!r}")
    return field.path


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of a function of rows, one number each; differentiable where gradients are on."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x if x.requires_grad else x.detach().requires_grad_()
        values = function(point)
        if values.shape != x.shape[:1]:
            raise ValueError(f"the energy or log-likelihood has shape {tuple(values.shape)}, expected one per row, ({len(x)},)")
        (found,) = torch.autograd.grad(values.sum(), point, create_graph=keep, materialize_grads=True)
    return found


def tangent(field: Field, x: Tensor, v: Tensor) -> Tensor:
    v = field.space.tangent(x, v)
    return v if field.mask is None else torch.where(field.mask, v, 0)
