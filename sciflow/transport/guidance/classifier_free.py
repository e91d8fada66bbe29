"""Classifier-free guidance."""

from __future__ import annotations

from sciflow.transport.field import Field, MixedField
from sciflow.transport.guidance.base import Guidance
from sciflow.transport.guidance.schedule import Schedule, strength_at, strength_of

__all__ = ["ClassifierFree"]


class ClassifierFree(Guidance):
    r"""v = v_u + w (v_c - v_u) with the conditional and the unconditional field of one network.

    Strength w = 1 is the conditional field and 0 the unconditional one, both to the last bit; above 1 the condition is
    overstated: draws become more typical of it, less diverse, and are no draws of p(x | c) any more. Their density is that of
    the guided flow.

    Needs a flow built with `unconditional=True` and trained with `drop_condition` of about 0.1. Learned shifts of noise or
    data are accounted for: the unconditional field is moved to where the conditional one lives.

    Arguments:
        strength: w, or a `Schedule` of it, such as `Interval(0.1, 0.8, inside=2.0, outside=1.0)`.

    In a list of guidance it comes first: what stands before it is taken for a part of the conditional field and is multiplied
    by w. After guidance that puts the points elsewhere (`PriorGuidance`) it is refused.

    Source: Guided Flows for Generative Modeling and Decision Making, Zheng et al. 2023, arXiv 2311.13443; Classifier-Free
    Diffusion Guidance, Ho and Salimans 2022, arXiv 2207.12598 (their w is ours less 1).

    >>> ClassifierFree(1.5)
    ClassifierFree(strength=1.5)
    """

    identity = 1.0

    def __init__(self, strength: float | Schedule = 1.5) -> None:
        super().__init__()
        self.strength = strength_of(strength)

    def forward(self, field: Field) -> Field:
        if self.strength == 1:
            return field
        free = field.unconditional()
        self.need_place(field, free)
        if self.strength == 0:
            return free

        return MixedField(free, field, lambda t, x: strength_at(self.strength, t, x), field)
