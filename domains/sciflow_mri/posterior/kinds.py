"""The three kinds of models that give draws of an image, and what tells them apart."""

from __future__ import annotations

from typing import Any

from sciflow.transport import TransportFlow
from sciflow_mri.model.conditions import IMAGES, LEVELS
from sciflow_mri.model.null_space.flow import NullSpaceFlow

__all__ = ["KINDS", "image_shape", "kind_of"]

KINDS = ("prior", "null-space", "amortised")


def kind_of(model: Any) -> str | None:
    """One of `KINDS`, or None for something else.

    "prior" is a flow over images (2, y, x), for any scan; "amortised" one over images given the condition of a scan with a mask
    of lines; "null-space" one over the lines that masks of one number of lines do not measure.

    >>> from sciflow_mri.model.prior import image_flow
    >>> kind_of(image_flow(16, widths=(8,), blocks=1))
    'prior'
    """
    shape = tuple(getattr(model, "event_shape", ()))
    if isinstance(model, NullSpaceFlow):
        return "null-space"
    if not isinstance(model, TransportFlow) or len(shape) != 3 or shape[0] != 2:
        return None
    features = model.encoder.features
    if features == 0:
        return "prior"
    return "amortised" if features == IMAGES * shape[1] * shape[2] + LEVELS else None


def image_shape(model: Any) -> tuple[int, ...]:
    """(2, y, x) of the images that a model draws; the event shape of whatever else it is."""
    return tuple(getattr(model, "image_shape", getattr(model, "event_shape", ())))
