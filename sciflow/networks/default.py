"""Which network an event shape asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sciflow.networks.time_network import TimeMLP, TimeNetwork
from sciflow.networks.transformer import Transformer
from sciflow.networks.unet import UNet

__all__ = ["default_network"]


def default_network(
    event_shape: tuple[int, ...], context: int, channels: int, *, maskable: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> TimeNetwork:  # fmt: skip
    """`TimeMLP` for vectors and whenever `arguments` of it are given, `Transformer` for points (N, d), `UNet` for images.

    >>> type(default_network((1, 8, 8), 0, 1)).__name__
    'UNet'
    """
    if arguments is not None:
        return TimeMLP(event_shape, context, channels, **{"maskable": maskable, **arguments})
    kind = {2: Transformer, 3: UNet}.get(len(event_shape), TimeMLP)
    return kind(event_shape, context, channels, maskable=maskable)
