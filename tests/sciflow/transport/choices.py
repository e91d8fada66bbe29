"""One small example of every part, for tests that combine them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from sciflow.distributions import DiagonalNormal, Mixture, StudentT
from sciflow.transport import (
    AlphaFlow,
    Box,
    CategoricalEndpoint,
    ConditionalOT,
    ConditionShift,
    ConsistencyFlowMatching,
    ContrastiveFlowMatching,
    Endpoint,
    Euclidean,
    ExactOT,
    FixedStep,
    FlowMapDistillation,
    FlowMatching,
    GaussianMixture,
    Geodesic,
    Given,
    HyperbolicBall,
    Independent,
    LikelihoodFlowMatching,
    Linear,
    LogitNormal,
    MeanFlow,
    PartialOT,
    Polynomial,
    Rotations,
    SchroedingerBridge,
    SchroedingerCoupling,
    Simplex,
    Sinkhorn,
    Sphere,
    SplitMeanFlow,
    StochasticInterpolant,
    Torus,
    TransportFlow,
    UnbalancedOT,
    UniformOn,
    VariancePreserving,
    Velocity,
    VelocityAndNoise,
    WeightedCoupling,
    WithinClasses,
    WrappedNormal,
)  # fmt: skip
from sciflow.transport.compatibility import broken
from sciflow.transport.rules import Choice, Rule

__all__ = ["KINDS", "allowed", "build", "data", "has_base", "objective_of", "pairwise", "rules_of"]

SIZE = 4  # ambient features of an event, in every space

KINDS: dict[str, dict[str, Callable[[], Any]]] = {
    "space": {
        "euclidean": Euclidean, "box": lambda: Box(-1.0, 1.0), "torus": Torus, "sphere": Sphere, "rotations": Rotations,
        "hyperbolic": HyperbolicBall, "simplex": Simplex,
    },
    "path": {
        "linear": Linear, "polynomial": lambda: Polynomial(1.5), "variance preserving": VariancePreserving,
        "bridge": lambda: SchroedingerBridge(0.5), "interpolant": StochasticInterpolant, "geodesic": Geodesic,
    },
    "head": {
        "velocity": Velocity, "endpoint": Endpoint, "categorical": CategoricalEndpoint, "mixture": lambda: GaussianMixture(2),
        "velocity and noise": VelocityAndNoise,
    },
    "base": {
        "normal": lambda: DiagonalNormal(SIZE), "heavy-tailed": lambda: StudentT(SIZE), "mixture": lambda: Mixture(SIZE, 2),
        "shifted": lambda: ConditionShift(DiagonalNormal(SIZE), 1), "on the space": lambda: None,
    },
    "coupling": {
        "independent": Independent, "exact OT": ExactOT, "Sinkhorn": lambda: Sinkhorn(0.5),
        "Schroedinger": lambda: SchroedingerCoupling(0.5), "unbalanced": UnbalancedOT, "partial": PartialOT,
        "conditional OT": ConditionalOT, "within classes": lambda: WithinClasses(ExactOT()), "W-CFM": WeightedCoupling,
        "given": Given,
    },
    "objective": {
        "flow matching": lambda: FlowMatching, "logit-normal": lambda: lambda **o: FlowMatching(times=LogitNormal(), **o),
        "contrastive": lambda: ContrastiveFlowMatching, "likelihood": lambda: LikelihoodFlowMatching,
        "consistency": lambda: ConsistencyFlowMatching, "mean flow": lambda: MeanFlow, "split mean flow": lambda: SplitMeanFlow,
        "alpha flow": lambda: lambda **o: AlphaFlow(end=4, **o),
        "flow map": lambda: lambda **o: FlowMapDistillation("eulerian", **o),
    },
    "condition": {"none": lambda: 0, "one": lambda: 1},
}  # fmt: skip

NEEDS_TWO = {"mean flow", "split mean flow", "alpha flow", "flow map"}


def objective_of(names: dict[str, str]) -> Any:
    return KINDS["objective"][names["objective"]]()(coupling=_part("coupling", names["coupling"]))


@functools.cache
def _part(kind: str, name: str) -> Any:
    return KINDS[kind][name]()


@functools.cache
def _objective(objective: str, coupling: str) -> Any:
    return objective_of({"objective": objective, "coupling": coupling})


def rules_of(names: dict[str, str]) -> list[Rule]:
    """The rules that a combination breaks, without building the flow; objective and coupling may be left out."""
    space, path, head, base = (_part(kind, names[kind]) for kind in ("space", "path", "head", "base"))
    base = _cached_base(names["space"]) if base is None else base
    trained = "objective" in names
    network = SimpleNamespace(two_time=trained and names["objective"] in NEEDS_TWO)
    objective = _objective(names["objective"], names["coupling"]) if trained else None
    conditional = names["condition"] == "one"
    return broken(Choice(path, head, base, space, _STEPPER, network, conditional, objective=objective))


_STEPPER = FixedStep(2)


@functools.cache
def _cached_base(space: str) -> Any:
    return _base_on(_part("space", space))


def has_base(names: dict[str, str]) -> bool:
    """R^n has no base of its own."""
    return (names["space"], names["base"]) != ("euclidean", "on the space")


def _base_on(space: Any) -> Any:
    return WrappedNormal(space, SIZE) if isinstance(space, HyperbolicBall) else UniformOn(space, SIZE)


def build(names: dict[str, str], **options: Any) -> TransportFlow:
    """The flow of a combination, small."""
    base = KINDS["base"][names["base"]]()
    space = KINDS["space"][names["space"]]()
    network: dict[str, Any] = {"hidden": (8,)}
    if names["objective"] in NEEDS_TWO:
        network["two_time"] = True
    return TransportFlow(
        SIZE, KINDS["condition"][names["condition"]](), network=network, base=_base_on(space) if base is None else base,
        path=KINDS["path"][names["path"]](), head=KINDS["head"][names["head"]](), space=space, stepper=FixedStep(2), **options,
    )  # fmt: skip


def data(names: dict[str, str], rows: int = 16, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Rows on the space, with condition and source where they are needed."""
    space = KINDS["space"][names["space"]]()
    if names["head"] == "categorical":
        x = torch.eye(SIZE, dtype=dtype)[torch.arange(rows) % SIZE]
    elif space.euclidean:
        x = torch.randn(rows, SIZE, dtype=dtype)
    else:
        x = _base_on(space).rsample(rows, dtype=dtype)
    found: dict[str, Any] = {"x": x}
    if names["condition"] == "one":
        found["condition"] = (torch.arange(rows) % 2).to(dtype)[:, None]
    if names["coupling"] == "given":
        found["source"] = x.flip(0)
    return found


def allowed() -> list[dict[str, str]]:
    """Every combination that the table allows, out of the full product."""
    first = ("space", "path", "head", "base", "condition")
    rest = ("coupling", "objective")
    found = []
    for values in itertools.product(*(KINDS[kind] for kind in first)):
        flow = dict(zip(first, values, strict=True))
        if not has_base(flow) or rules_of(flow):
            continue  # what a flow cannot be made of, no objective can mend
        for names in itertools.product(*(KINDS[kind] for kind in rest)):
            whole = {**flow, **dict(zip(rest, names, strict=True))}
            if not rules_of(whole):
                found.append(whole)
    return found


def pairwise(combinations: list[dict[str, str]]) -> list[dict[str, str]]:
    """A small selection that holds every pair of parts which occurs in an allowed combination (greedy)."""

    def pairs(names: dict[str, str]) -> set[tuple[str, str, str, str]]:
        return {(a, names[a], b, names[b]) for a, b in itertools.combinations(names, 2)}

    open_pairs = set().union(*(pairs(names) for names in combinations))
    chosen: list[dict[str, str]] = []
    covers = [pairs(names) for names in combinations]
    while open_pairs:
        best = max(range(len(combinations)), key=lambda number: len(covers[number] & open_pairs))
        chosen.append(combinations[best])
        open_pairs -= covers[best]
    return chosen
