"""The error where all weights are 0, with what was computed and its failed certificate."""

from __future__ import annotations

from sciflow.certificate import Certificate, Test
from sciflow.posterior.result import Posterior, Result
from sciflow.posterior.target import Target
from sciflow.posterior.weights import NoEffectiveDraws

__all__ = ["no_effective_draws"]


def no_effective_draws(message: str, result: Result, target: Target, subject: str) -> NoEffectiveDraws:
    """To be raised: `message` says why and what to do, `subject` names the method; `target` has counted the calls."""
    failed = Certificate([Test("effective draws", 0.0, 1.0, ">="), target.values_test()], subject=subject)
    kept = Posterior(**{**vars(result), "certificate": failed, "calls": target.calls})
    return NoEffectiveDraws(f"no effective draws: {message} (what was computed is in the error's `result`)", kept)
