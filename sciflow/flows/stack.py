"""How layers are stacked: alternating couplings, reversed orders, mixing in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from sciflow.distributions import Base
from sciflow.errors import UserError
from sciflow.flows.autoregressive import Autoregressive
from sciflow.flows.coupling import Coupling, coupling_splits
from sciflow.flows.elementwise import Elementwise
from sciflow.flows.layered import Layer
from sciflow.flows.mixing import LUMixing, OrthogonalMixing

__all__ = ["Kind", "Mixing", "hyper_layers"]

Kind: TypeAlias = Literal["coupling", "autoregressive"]
Mixing: TypeAlias = Literal["none", "lu", "orthogonal"]
_MIXINGS: dict[str, type[LUMixing] | type[OrthogonalMixing]] = {"lu": LUMixing, "orthogonal": OrthogonalMixing}


def hyper_layers(
    groups: Sequence[tuple[Elementwise, Sequence[int]]],
    *,
    kind: str,
    transforms: int,
    context: int,
    hidden: Sequence[int],
    activation: str,
    maskable: bool,
    circles: dict[int, float],
    mixing: str,
    base: Base,
    seed: int,
) -> list[Layer]:
    """Layers with networks, with linear layers in between if asked for.

    Arguments:
        groups: pairs (elementwise map, features), together all features.

    Raises `UserError` for combinations that cannot work, with the reason.
    """
    features = sum(len(members) for _, members in groups)
    if kind not in ("coupling", "autoregressive"):
        raise UserError(f"kind is {kind!r}; it must be 'coupling' or 'autoregressive'")
    least = 2 if kind == "coupling" and features > 1 else 1
    if transforms < least:
        raise UserError(f"transforms={transforms} leaves features unmapped; {kind} flows need at least {least}")
    _check_mixing(mixing, maskable=maskable, circles=circles, base=base)
    options = {"hidden": hidden, "activation": activation, "maskable": maskable, "circles": circles}
    layers: list[Layer] = []
    for number, (kept, changed) in enumerate(coupling_splits(features, transforms, seed)):
        if number and mixing != "none":
            layers.append(_MIXINGS[mixing](features))
        if kind == "coupling":
            chosen = [(map_, [feature for feature in members if feature in changed]) for map_, members in groups]
            layers.append(Coupling(kept, chosen, context, **options))  # type: ignore[arg-type]
        else:
            order = list(range(features)) if number % 2 == 0 else list(reversed(range(features)))
            layers.append(Autoregressive(order, groups, context, **options))  # type: ignore[arg-type]
    return layers


def _check_mixing(mixing: str, *, maskable: bool, circles: dict[int, float], base: Base) -> None:
    if mixing not in ("none", *_MIXINGS):
        raise UserError(f"mixing is {mixing!r}; it must be 'none', 'lu' or 'orthogonal'")
    if mixing == "none":
        return
    reasons = {
        "a maskable flow: absent features would be mixed into present ones": maskable,
        "circular features: a sum of angles with other features has no period": bool(circles),
        "a heavy-tailed base: every margin would inherit the heaviest tail": getattr(base, "heavy_tailed", False),
    }
    for reason, given in reasons.items():
        if given:
            raise UserError(f"mixing={mixing!r} cannot be combined with {reason}; use mixing='none'")
