"""The likelihood of a simulator, learned from its simulations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows import Flow
from sciflow.flows.condition import encoder_for
from sciflow.persistence import load, save
from sciflow.posterior.amortised.coordinates import Coordinates, bounds_of
from sciflow.posterior.amortised.fitting import usable
from sciflow.posterior.amortised.members import train_members
from sciflow.posterior.amortised.recipes import LikelihoodRecipe, Recipe
from sciflow.posterior.amortised.regression import Regression
from sciflow.posterior.likelihoods.base import Likelihood
from sciflow.posterior.prior import as_prior
from sciflow.transport import TransportFlow

__all__ = ["LearnedLikelihood", "fit_likelihood"]

_EDGE = 1e-3  # parameters are a condition here: they need not be opened at bounds, and what is linear in them stays so
_ROWS = 4096


class LearnedLikelihood(Likelihood):
    r"""q(y | theta) = mean_k q_k(r | theta) / prod s, r = (y - theta B - b) / s; what `fit_likelihood` returns.

    The likelihood of a `Problem(prior, y, likelihood)` whose x is theta itself: every sampler takes it. It holds for y and
    theta such as were simulated; far away from them it says nothing.

    Arguments:
        flows: of residuals given standardised parameters.
        coordinates, regression: fitted.
        shape: of the data of one simulation.
    """

    def __init__(self, flows: Sequence[Flow], coordinates: Coordinates, regression: Regression, shape: Sequence[int]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        self.coordinates, self.regression, self.shape = coordinates, regression, torch.Size(shape)
        self.records: list[Any] = []  # what `fit` said of each flow; not saved
        self.validation_loss = self.training_seconds = math.nan  # not saved

    def data_shape(self, prediction: torch.Size) -> torch.Size:
        return self.shape

    def log_prob(self, y: Tensor, prediction: Tensor) -> Tensor:
        """log q(y | theta) (B,) for data (*shape) or (B, *shape) and parameters (B, D), float64.

        Discrete columns of y are taken as the density at their value, times the gap between values.
        """
        if y.shape[y.dim() - len(self.shape) :] != self.shape or y.dim() not in (len(self.shape), len(self.shape) + 1):
            raise ValueError(f"the data have shape {tuple(y.shape)}, expected {tuple(self.shape)} with or without rows")
        rows = y.reshape(-1, self.regression.features).expand(len(prediction), -1)
        pieces = zip(rows.split(_ROWS), prediction.split(_ROWS), strict=True)
        wanted = torch.is_grad_enabled() and (prediction.requires_grad or y.requires_grad)  # not that of the weights
        with torch.set_grad_enabled(wanted):
            return torch.cat([self._log_prob(*piece) for piece in pieces]) if len(prediction) else prediction.new_zeros(0)

    def _log_prob(self, y: Tensor, theta: Tensor) -> Tensor:
        z, _ = self.coordinates(theta)
        residual, ladj = self.regression(y, z)
        dtype = next(self.flows.parameters()).dtype
        each = torch.stack([flow(z.to(dtype)).log_prob(residual.to(dtype)).double() for flow in self.flows])
        gaps = self.regression.gap[self.regression.gap > 0].log().sum()
        return each.logsumexp(0) - math.log(len(self.flows)) + ladj + gaps

    def uniforms(self, shape: tuple[int, ...]) -> int:
        return max(flow.uniforms for flow in self._members) + (len(self.flows) > 1)

    @torch.no_grad()
    def sample(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        z, _ = self.coordinates(prediction)
        which = (uniform[:, -1] * len(self.flows)).long() if len(self.flows) > 1 else torch.zeros(len(z), dtype=torch.int64)
        residual = torch.empty(len(z), self.regression.features, dtype=torch.float64, device=z.device)
        dtype = next(self.flows.parameters()).dtype
        for number, flow in enumerate(self._members):
            rows = (which == number).nonzero()[:, 0]
            if len(rows):
                residual[rows] = flow(z[rows].to(dtype)).from_uniform(uniform[rows, : flow.uniforms], density=False)[0].double()
        return self.regression.inverse(residual, z).reshape(-1, *self.shape).to(prediction.dtype)

    @property
    def _members(self) -> list[Flow]:
        return list(self.flows)  # type: ignore[arg-type]

    def save(self, folder: str | Path) -> Path:
        """As a model folder."""
        return save(self, folder, readme="A likelihood learned from simulations.")

    @classmethod
    def load(cls, folder: str | Path, *, trust: Sequence[str] = ()) -> LearnedLikelihood:
        """From a model folder."""
        found = load(folder, trust=trust)
        if not isinstance(found, cls):
            raise UserError(f"{folder} holds a {type(found).__name__}, not a {cls.__name__}")
        return found.eval()

    def extra_repr(self) -> str:
        return f"{self.coordinates.features} parameters -> data {tuple(self.shape)}, {len(self.flows)} flows"


def fit_likelihood(
    prior: Any, theta: Tensor, y: Tensor, *, flow: Recipe | None = None, validation: float = 0.1, seed: int = 0,
    progress: bool = True, checkpoint: str | Path | None = None, training: Mapping[str, Any] | None = None,
) -> LearnedLikelihood:  # fmt: skip
    r"""Learn p(y | theta) from the simulations that `fit_posterior` takes, complete data (N, ...) only.

    A flow over all entries of y given theta, after a linear regression. Where the noise is simple and the posterior is not
    (several modes, edges of the prior) it takes fewer simulations than the posterior, which any sampler then finds.
    Discrete columns are spread over the gaps between their values while training.

    Arguments:
        prior: for the bounds of theta alone; the simulations need not come from it.
        flow: a recipe of a flow with a density; `LikelihoodRecipe()` by default.
        the others: see `fit_posterior`.

    Raises `UserError` for data with a mask, and for fewer than 20 finite simulations.

    Source: Sequential neural likelihood, Papamakarios, Sterratt and Murray 2018, arXiv 1805.07226.
    """
    known = as_prior(prior)
    theta, y, _ = usable(known, theta, y)
    if not isinstance(y, Tensor):
        raise UserError("a likelihood is learned for complete data (N, ...), y has a mask: learn the posterior instead")
    shape, recipe = y.shape[1:], LikelihoodRecipe() if flow is None else flow
    coordinates = Coordinates(*bounds_of(known.support, theta.shape[1]), edge=_EDGE).fit(theta)
    z, rows = coordinates(theta)[0], y.reshape(len(y), -1).double()
    regression = Regression(rows.shape[1], theta.shape[1]).fit(rows, z)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(rows.shape, generator=generator, dtype=torch.float64).to(rows.device)
    residual = regression(regression.spread(rows, uniform), z)[0].float()

    def build(member: int) -> Flow:
        found = recipe.build(rows.shape[1], encoder_for(theta.shape[1]), seed + member)
        if isinstance(found, TransportFlow):
            raise UserError(
                "a learned likelihood is evaluated at many parameters: give a flow with a cheap density, LikelihoodRecipe"
            )
        return found

    trained = train_members(
        recipe, build, residual, z.float(), validation=validation, seed=seed, progress=progress, checkpoint=checkpoint,
        training=training,
    )  # fmt: skip
    likelihood = LearnedLikelihood(trained.flows, coordinates, regression, tuple(shape)).eval()
    likelihood.records, likelihood.training_seconds = trained.records, trained.seconds
    if trained.validation_loss is not None:
        likelihood.validation_loss = trained.validation_loss + float(regression.scale.log().sum())
    return likelihood
