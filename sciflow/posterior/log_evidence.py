"""What an evidence estimate is."""

from __future__ import annotations

import math
from typing import NamedTuple

from sciflow.errors import UserError

__all__ = ["Evidence"]


class Evidence(NamedTuple):
    """log Z = log of the integral of p~, with its standard error from independent replicates.

    `log_value` is the log of the mean of Z over replicates (unbiased in Z where each replicate is), `error` its standard error,
    NaN if there is one replicate only: then nobody knows it. `method` names the estimator.
    """

    log_value: float
    error: float
    method: str
    replicates: tuple[float, ...] = ()

    @classmethod
    def from_replicates(cls, log_values: list[float] | tuple[float, ...], method: str) -> Evidence:
        """The log of the mean of exp(log_values), with the error of that mean to first order.

        Raises `UserError` if there are none.
        """
        values = tuple(float(value) for value in log_values)
        if not values:
            raise UserError(f"evidence by {method} of no replicates: give one value at least")
        top = max(values)
        if not math.isfinite(top):
            return cls(top, math.nan, method, values)
        scaled = [math.exp(value - top) for value in values]
        mean = sum(scaled) / len(scaled)
        if len(values) < 2:
            return cls(values[0], math.nan, method, values)
        variance = sum((value - mean) ** 2 for value in scaled) / (len(values) - 1) / len(values)
        return cls(top + math.log(mean), math.sqrt(variance) / mean, method, values)
