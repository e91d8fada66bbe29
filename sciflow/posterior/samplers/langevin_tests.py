"""What is tested of draws whose chains ran without a Metropolis test."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sciflow.certificate import Test
from sciflow.posterior.diagnostics.chains import effective_sizes, split_r_hat

__all__ = ["mixing_tests", "residual_test"]

_MOST = 256  # features that are looked at
_SIGMAS = 5.0
_R_HAT, _LIMIT = 1.2, 1.5
_VEHTARI = "Rank-normalization, folding, and localization: an improved R-hat, Vehtari et al. 2021, arXiv:1903.08008"


def residual_test(found: Any, noise_error: float = 0.0, noise_excess: float | None = None) -> Test:
    r"""|y - A x|^2 / sigma^2 per datum, mean over draws, against 1.

    If x is a draw of the posterior, (x, y) is one of the joint distribution, so that its residual is chi-squared with n degrees
    of freedom: within 1 +- 5 sqrt(2 / n) but for one observation in 1.7 million. The mean over draws scatters less. A sigma^2
    that is known up to a fraction f widens both sides by f, or the lower one by how much of it may be excess.
    """
    data = found.statistics["data"]
    width = _SIGMAS * math.sqrt(2 / data)
    limits = (1 - width - (noise_error if noise_excess is None else noise_excess), 1 + width + noise_error)
    return Test("data residual", float(found.traces["residual"].mean()), limits, "inside",
                description=f"|y - A x|^2 / sigma^2 over {data:.0f} real data; too large: noise, operator or prior are wrong; "
                            "too small: the noise is less than stated")  # fmt: skip


def mixing_tests(states: Tensor | None) -> list[Test]:
    """R-hat and effective size of chains (chains, states, *event) at the last level, over at most 256 features.

    Of many features the worst R-hat is large by chance, so its 95th percentile is looked at: it warns above 1.2 and fails above
    1.5. Four independent chains of 50 states have about 1.03:

    >>> states = torch.randn(4, 50, 256, generator=torch.Generator().manual_seed(0))
    >>> mixing_tests(states)[0].value < 1.04
    True
    """
    if states is None:
        text = "no states beyond the draws: states > 0 says whether the last level has been reached"
        return [Test("R-hat (95 % of features)", None, _R_HAT, "<=", severity="warn", description=text)]
    chains, count = states.shape[:2]
    flat = states.flatten(2)
    if flat.shape[2] > _MOST:
        flat = flat[..., torch.linspace(0, flat.shape[2] - 1, _MOST, device=flat.device).long()]
    value = float(torch.quantile(split_r_hat(flat).flatten(), 0.95))
    size = float(effective_sizes(flat)[0].median())
    text = f"rank-normalised split R-hat, {chains} chains of {count} states at the last level, {flat.shape[2]} features"
    return [
        Test("R-hat (95 % of features)", value, _R_HAT, "<=", severity="warn", description=text, reference=_VEHTARI),
        Test("R-hat (95 % of features), limit", value, _LIMIT, "<=", description=text, reference=_VEHTARI),
        Test("effective size of the chains (median)", size, description=f"of {chains * count} states; reported"),
    ]
