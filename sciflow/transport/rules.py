"""What composes with what, and why not, as data: a rule per kind of trouble."""

from __future__ import annotations

from typing import Any

from sciflow.distributions import DiagonalNormal, MeanFreeNormal, Product
from sciflow.transport.choice import Choice, Rule
from sciflow.transport.couplings.base import Independent
from sciflow.transport.spaces.mean_free import MeanFreeSpace
from sciflow.transport.spaces.product import ProductSpace

__all__ = ["RULES", "Choice", "Rule"]


def _is(part: Any, trait: str) -> bool:
    return bool(getattr(part, trait, False))


def _normal(choice: Choice) -> bool:
    base = choice.base.base if _is(choice.base, "needs_condition") else choice.base  # shifts are known to the field
    return isinstance(base, DiagonalNormal)


def _moves(choice: Choice) -> bool:
    """Whether noise or data are moved by something that learns with the field."""
    base = choice.base if _is(choice.base, "needs_condition") or _is(choice.base, "trainable") else None
    parts = [part for part in (base, choice.shift) if part is not None]
    return any(weight.requires_grad for part in parts for weight in part.parameters())


RULES: tuple[Rule, ...] = (
    Rule(
        "coupling x condition", "plain optimal transport and weights only without a condition",
        lambda c: c.conditional and c.coupling is not None and not c.coupling.keeps_condition,
        "{coupling} makes the noise depend on the condition, which the base does not know when it is sampled: use one that "
        "keeps the condition, such as ConditionalOT or WithinClasses",
    ),
    Rule(
        "coupling x condition", "conditional couplings only with a condition",
        lambda c: not c.conditional and _is(c.coupling, "needs_condition"),
        "{coupling} couples within conditions, and the flow has none: use ExactOT",
    ),
    Rule(
        "coupling x base", "a base that depends on the condition keeps its draws",
        lambda c: (_is(c.base, "needs_condition") or _is(c.base, "knows_condition")) and _is(c.coupling, "rearranges"),
        "{coupling} gives the noise of one condition to another, but {base} depends on the condition: use Independent",
    ),
    Rule(
        "coupling x path", "a Schroedinger-bridge coupling belongs to the bridge of its own noise",
        lambda c: getattr(c.coupling, "sigma", None) is not None and getattr(c.path, "sigma", None) != c.coupling.sigma,
        "{coupling} is the plan of a bridge of its own noise, not of {path}: use the path SchroedingerBridge "
        "with the same sigma",
    ),
    Rule(
        "base x condition", "a condition-aware base needs a condition",
        lambda c: _is(c.base, "needs_condition") and not c.conditional,
        "{base} shifts by the condition, and the flow has none",
    ),
    Rule(
        "path x space", "curved spaces take the geodesic path",
        lambda c: not c.space.straight and c.path.straight,
        "{path} joins points by straight lines, which leave {space}: use Geodesic",
    ),
    Rule(
        "path x space", "between walls only paths that stay between their ends",
        lambda c: _is(c.space, "walls") and c.path.straight and not c.path.convex,
        "{path} leaves {space} on its way: use Linear or Geodesic",
    ),
    Rule(
        "path x space", "noisy paths only in R^n",
        lambda c: c.path.noisy and not c.space.euclidean,
        "{path} adds a normal, which leaves {space}: use Linear or Geodesic",
    ),
    Rule(
        "head x path", "endpoint heads need an affine path",
        lambda c: c.head.needs_affine and not _affine(c.path),
        "{head} reads the endpoint off an affine path such as Linear, not off {path}; a noisy path needs VelocityAndNoise",
    ),
    Rule(
        "head x path", "VelocityAndNoise needs a noisy path",
        lambda c: c.head.needs_noise and not c.path.noisy,
        "{head} learns the path's own noise, and {path} has none: use SchroedingerBridge or StochasticInterpolant",
    ),
    Rule(
        "head x space", "heads other than the velocity only in flat coordinates",
        lambda c: not c.head.tangent and not c.space.straight,
        "{head} adds endpoints up, which {space} does not allow: use Velocity",
    ),
    Rule(
        "base x coupling", "given sources take the place of a base that would have to learn",
        lambda c: _is(c.base, "needs_condition") and _is(c.coupling, "needs_source"),
        "{coupling} never draws from {base}, which would learn nothing: use a base without weights",
    ),
    Rule(
        "base x space", "shifts only in R^n",
        lambda c: _is(c.base, "needs_condition") and not c.space.euclidean,
        "{base} adds a shift, which leaves {space}: use UniformOn",
    ),
    Rule(
        "base x space", "a base belongs to the space",
        lambda c: _foreign(c),
        "{base} is no density on {space}: use UniformOn or WrappedNormal",
    ),
    Rule(
        "stepper x path", "endpoint steps need an affine path",
        lambda c: _is(c.stepper, "needs_affine") and not _affine(c.path),
        "{stepper} steps along an affine path such as Linear, not along {path}: use FixedStep or Adaptive",
    ),
    Rule(
        "stepper x path x head", "endpoint steps on a path that stands still at t = 0 need an endpoint head",
        lambda c: _is(c.stepper, "needs_endpoint") and _is(c.path, "lingers") and not c.head.tells_endpoint,
        "{path} stands still at t = 0, where {head} tells nothing of the endpoint that {stepper} aims at: use FixedStep, an "
        "Endpoint head or another path",
    ),
    Rule(
        "stepper x space", "endpoint, SDE and map steps only in R^n",
        lambda c: _is(c.stepper, "euclidean_only") and not c.space.euclidean,
        "{stepper} adds in R^n, not on {space}: use FixedStep or Adaptive",
    ),
    Rule(
        "stepper x base", "SDE steps on an affine path need a standard normal base",
        lambda c: _is(c.stepper, "needs_score") and not c.path.noisy and not _normal(c),
        "{stepper} needs the score, which on {path} belongs to a standard normal base, not to {base}: use FixedStep, or a "
        "noisy path with VelocityAndNoise",
    ),
    Rule(
        "stepper x path", "SDE steps need an affine or a noisy path",
        lambda c: _is(c.stepper, "needs_score") and not c.path.noisy and not _affine(c.path),
        "{stepper} needs the score, which the velocity on {path} does not tell: use Linear, or a noisy path",
    ),
    Rule(
        "stepper x head", "fixed steps with a stage at t = 1 need a velocity that is finite there",
        lambda c: _is(c.stepper, "ends_at_data") and c.head.endpoint_stepping,
        "{stepper} evaluates the velocity at t = 1, where that of {head} is singular: use EndpointStep, Adaptive, or "
        "FixedStep(method='midpoint')",
    ),
    Rule(
        "stepper x head", "adjoint gradients need a velocity that is finite at the data",
        lambda c: _is(c.stepper, "starts_at_data") and c.head.endpoint_stepping,
        "{stepper} goes back from t = 1, where the velocity of {head} is singular: take gradients through the steps themselves",
    ),
    Rule(
        "stepper x head", "two-time maps need the velocity head",
        lambda c: _is(c.stepper, "two_time") and not c.head.tangent,
        "{stepper} takes what the network says for an average velocity, which {head} does not: use the head Velocity",
    ),
    Rule(
        "stepper x head", "SDE steps on a noisy path need VelocityAndNoise",
        lambda c: _is(c.stepper, "needs_score") and c.path.noisy and not c.head.needs_noise,
        "{stepper} needs the score, which the velocity on {path} does not tell: use the head VelocityAndNoise",
    ),
    Rule(
        "stepper x network", "two-time maps need a two-time network",
        lambda c: _is(c.stepper, "two_time") and not c.network.two_time,
        "{stepper} jumps with the average velocity: build the network with two_time=True and train it with "
        "MeanFlow or its like",
    ),
    Rule(
        "objective x network", "few-step objectives need a two-time network",
        lambda c: _is(c.objective, "two_time") and not c.network.two_time,
        "{objective} learns a two-time map: build the network with two_time=True",
    ),
    Rule(
        "objective x space", "few-step objectives only in R^n",
        lambda c: _is(c.objective, "euclidean_only") and not c.space.euclidean,
        "{objective} adds along chords, not on {space}: use FlowMatching",
    ),
    Rule(
        "objective x path", "straight-line objectives need the linear path",
        lambda c: _is(c.objective, "linear_only") and not c.path.linear,
        "{objective} is about straight lines at constant speed, not about {path}: use Linear",
    ),
    Rule(
        "objective x head", "velocity objectives need the velocity head",
        lambda c: (_is(c.objective, "velocity_head_only") or _is(c.objective, "velocity_only"))
        and not c.head.tangent,
        "{objective} speaks of the velocity itself: use the head Velocity instead of {head}",
    ),
    Rule(
        "objective x path", "weights of the loss in time need an affine path",
        lambda c: c.objective is not None and getattr(c.objective, "weighting", None) is not None and not _affine(c.path),
        "{objective} weighs times by the coefficients of an affine path, and {path} has none: use FlowMatching",
    ),
    Rule(
        "objective x coupling", "reflow and piecewise reflow keep their pairs",
        lambda c: (_is(c.objective, "needs_source") or _is(c.objective, "keeps_coupling")) and _is(c.coupling, "rearranges"),
        "{coupling} takes apart what {objective} keeps together: use Independent",
    ),
    Rule(
        "objective x base", "objectives that hold their target fixed need noise and data that hold still",
        lambda c: _is(c.objective, "fixed_target") and _moves(c),
        "{objective} does not differentiate its target, so that learned noise or a learned shift would get the gradient of one "
        "side alone: train it with FlowMatching first and freeze it (requires_grad_(False))",
    ),
    Rule(
        "objective x base", "the likelihood bound belongs to standard normal noise",
        lambda c: _is(c.objective, "diffusion_only") and not _normal(c),
        "{objective} is the bound of a diffusion, whose noise is standard normal, not {base}: use WeightedFlowMatching",
    ),
    Rule(
        "objective x coupling", "the likelihood bound belongs to independent noise",
        lambda c: _is(c.objective, "diffusion_only") and not isinstance(c.coupling, Independent),
        "{objective} is the bound of a diffusion, whose noise knows nothing of the data, unlike that of {coupling}: use "
        "Independent, or WeightedFlowMatching",
    ),
    Rule(
        "objective x condition", "contrastive objectives need a condition",
        lambda c: _is(c.objective, "needs_condition") and not c.conditional,
        "{objective} compares rows of different conditions, and the flow has none: use FlowMatching",
    ),
    Rule(
        "objective x condition", "dropping the condition needs unconditional=True",
        lambda c: bool(getattr(c.objective, "drop_condition", 0)) and not c.unconditional,
        "{objective} drops the condition: build the flow with unconditional=True",
    ),
    Rule(
        "space x mask", "ragged events only where 0 stays 0",
        lambda c: c.maskable and not c.space.keeps_zero,
        "absent features are 0, which {space} moves: use a space per point, or no mask",
    ),
)  # fmt: skip


def _foreign(choice: Choice) -> bool:
    """Whether the base is made for another space than this curved or bounded one."""
    return _elsewhere(choice.base, choice.space)


def _elsewhere(base: Any, space: Any) -> bool:
    if space.euclidean or getattr(base, "no_density", None):
        return False
    if isinstance(base, Product) and isinstance(space, ProductSpace):
        return len(base.bases) != len(space.spaces) or any(map(_elsewhere, base.bases, space.spaces))
    if isinstance(base, MeanFreeNormal):
        return not isinstance(space, MeanFreeSpace)
    own = getattr(getattr(base, "flow", base), "space", None)
    return not space.same(own)


def _affine(path: Any) -> bool:
    return hasattr(path, "coefficients")
