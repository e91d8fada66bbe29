"""Which flow, and how it is trained: the defaults of amortised inference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sciflow.errors import UserError
from sciflow.flows import Flow, NeuralSplineFlow
from sciflow.flows.condition import Encoder
from sciflow.flows.set_encoder import SetEncoder
from sciflow.posterior.amortised.affine_spline import AffineSplineFlow
from sciflow.posterior.amortised.encoders import Tokens
from sciflow.posterior.amortised.joint_matching import JointMatching
from sciflow.posterior.amortised.joint_network import JointNetwork
from sciflow.training import MaximumLikelihood, Objective
from sciflow.transport import FlowMatching, TransportFlow
from sciflow.transport.part import Part
from sciflow.transport.steppers import FixedStep
from sciflow.transport.times import PowerLaw

__all__ = ["Given", "JointRecipe", "LikelihoodRecipe", "MatchingRecipe", "Recipe", "SplineRecipe", "recipe_of"]


class Recipe(Part):
    """How the flow of a posterior is built and trained.

    Arguments:
        training: arguments of `sciflow.training.fit`, over those of the recipe.
        members: how many flows are trained, each from its own start; the posterior is their mean.
    """

    defaults: Mapping[str, Any] = {}
    of_sets: Mapping[str, Any] = {}  # in their place where the data are sets
    tokens = False  # whether it wants data as tokens

    def __init__(self, *, members: int = 1, training: Mapping[str, Any] | None = None) -> None:
        self.members, self.training = members, dict(training or {})

    def fit_arguments(self, encoder: Encoder) -> dict[str, Any]:
        """For `fit`, of a flow with this encoder: attention learns at a lower rate than perceptrons do."""
        return {**self.defaults, **(self.of_sets if isinstance(encoder, SetEncoder) else {}), **self.training}

    @abstractmethod
    def build(self, parameters: int, encoder: Encoder, seed: int) -> Flow:
        """A fresh flow over D standardised parameters."""

    def objective(self) -> Objective:
        return MaximumLikelihood()


class SplineRecipe(Recipe):
    """Neural posterior estimation with a neural spline flow: a density in one pass, draws in milliseconds.

    Source: Fast epsilon-free inference of simulation models, Papamakarios and Murray 2016, arXiv 1605.06376; Neural Spline
    Flows, Durkan et al. 2019, arXiv 1906.04032.
    """

    defaults = {"epochs": 60, "batch_size": 128, "learning_rate": 5e-3, "ema": 0.995, "weight_decay": 1e-2, "patience": 20}  # noqa: RUF012
    of_sets = {"epochs": 60, "learning_rate": 1e-3, "patience": 20}  # noqa: RUF012

    def __init__(
        self, transforms: int = 2, bins: int = 8, hidden: Sequence[int] = (128, 128, 128),
        kind: Literal["coupling", "autoregressive"] = "autoregressive", *, activation: str = "silu", members: int = 2,
        training: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(members=members, training=training)
        self.arguments: dict[str, Any] = {
            "transforms": transforms,
            "bins": bins,
            "hidden": hidden,
            "kind": kind,
            "activation": activation,
        }

    def build(self, parameters: int, encoder: Encoder, seed: int) -> Flow:
        return NeuralSplineFlow(parameters, encoder=encoder, seed=seed, **self.arguments)


class LikelihoodRecipe(Recipe):
    """The flow of a learned likelihood: affine layers for location and scale, splines for the shape.

    Source: Sequential neural likelihood, Papamakarios, Sterratt and Murray 2018, arXiv 1805.07226.
    """

    defaults = {"epochs": 60, "batch_size": 128, "learning_rate": 5e-3, "ema": 0.995, "weight_decay": 1e-2, "patience": 15}  # noqa: RUF012

    def __init__(
        self, affine: int = 2, splines: int = 1, bins: int = 8, hidden: Sequence[int] = (128, 128, 128), *,
        activation: str = "silu", members: int = 4, training: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(members=members, training=training)
        self.arguments: dict[str, Any] = {
            "affine": affine,
            "splines": splines,
            "bins": bins,
            "hidden": hidden,
            "activation": activation,
        }

    def build(self, parameters: int, encoder: Encoder, seed: int) -> Flow:
        return AffineSplineFlow(parameters, encoder=encoder, seed=seed, **self.arguments)


class MatchingRecipe(Recipe):
    """Flow matching posterior estimation with a perceptron.

    Source: Flow Matching for Scalable Simulation-Based Inference, Dax et al. 2023, arXiv 2305.17161.
    """

    defaults = {"epochs": 300, "batch_size": 256, "learning_rate": 1e-3, "ema": 0.999, "weight_decay": 1e-3}  # noqa: RUF012

    def __init__(
        self, hidden: Sequence[int] = (192, 192, 192, 192), *, exponent: float = 1.0, steps: int = 32, members: int = 1,
        training: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(members=members, training=training)
        self.hidden, self.exponent, self.steps = tuple(hidden), exponent, steps

    def build(self, parameters: int, encoder: Encoder, seed: int) -> Flow:
        return TransportFlow(parameters, encoder=encoder, network={"hidden": self.hidden}, stepper=FixedStep(self.steps))

    def objective(self) -> Objective:
        return FlowMatching(times=PowerLaw(self.exponent))


class JointRecipe(Recipe):
    """A joint transformer over parameters and data: a variable number of observations, missing entries, few simulations.

    Source: All-in-one simulation-based inference, Gloeckler et al. 2024, arXiv 2404.09636.
    """

    defaults = {"epochs": 150, "batch_size": 128, "learning_rate": 1e-3, "ema": 0.999, "weight_decay": 1e-2, "warmup": 300}  # noqa: RUF012
    tokens = True

    def __init__(
        self, width: int = 64, blocks: int = 3, heads: int = 4, *, frequencies: int = 4, dropout: float = 0.0,
        exponent: float = 1.0, missing: float = 0.3, steps: int = 32, members: int = 1,
        training: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(members=members, training=training)
        self.arguments: dict[str, Any] = {
            "width": width,
            "blocks": blocks,
            "heads": heads,
            "frequencies": frequencies,
            "dropout": dropout,
        }
        self.exponent, self.missing, self.steps = exponent, missing, steps

    def build(self, parameters: int, encoder: Encoder, seed: int, *, exchangeable: bool = False) -> Flow:
        if not isinstance(encoder, Tokens):
            raise UserError("the joint transformer takes data as tokens, not through an embedding network")
        network = JointNetwork(parameters, encoder.places, encoder.entry, exchangeable=exchangeable, **self.arguments)
        return TransportFlow(parameters, encoder=encoder, network=network, stepper=FixedStep(self.steps))

    def objective(self) -> Objective:
        return JointMatching(missing=self.missing, times=PowerLaw(self.exponent))


class Given(Recipe):
    """A flow that was built by hand, over D parameters with the data as its condition; trained by likelihood or matching."""

    def __init__(self, flow: Flow, *, training: Mapping[str, Any] | None = None) -> None:
        super().__init__(training=training)
        self.flow = flow

    def build(self, parameters: int, encoder: Encoder, seed: int) -> Flow:
        if self.flow.event_shape != (parameters,):
            raise UserError(f"the flow has event shape {tuple(self.flow.event_shape)}, there are {parameters} parameters")
        return self.flow

    def objective(self) -> Objective:
        return FlowMatching() if isinstance(self.flow, TransportFlow) else MaximumLikelihood()


_NAMES = {"spline": SplineRecipe, "matching": MatchingRecipe, "joint": JointRecipe}


def recipe_of(flow: str | Recipe | Flow) -> Recipe:
    """A recipe from its name, or around a flow. Raises `UserError` naming the known ones."""
    if isinstance(flow, Recipe):
        return flow
    if isinstance(flow, Flow):
        return Given(flow)
    if flow not in _NAMES:
        raise UserError(f"flow={flow!r} is unknown: choose {', '.join(sorted(_NAMES))}, a Recipe or a Flow")
    return _NAMES[flow]()
