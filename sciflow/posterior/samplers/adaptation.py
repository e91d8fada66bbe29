"""Step sizes and windows of a warm-up. Whatever adapts here is frozen before the first draw that counts."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DualAveraging", "windows"]


class DualAveraging:
    r"""Steps whose mean acceptance becomes the wanted one:

        log h_t = log(10 h_0) - sqrt(t) / gamma H_t,  H_t the running mean of (wanted - acceptance),

    and at the end the mean of log h_t with weights t^-kappa. One step, or several at once (one for each temperature).

    Source: The No-U-Turn Sampler, Hoffman and Gelman 2011, arXiv 1111.4246.
    """

    _gamma, _delay, _kappa = 0.05, 10.0, 0.75

    def __init__(self, step: Tensor, wanted: float) -> None:
        self.wanted = wanted
        self.restart(step)

    def restart(self, step: Tensor) -> None:
        """Forget the past and begin at this step."""
        self.step, self._towards, self._count = step, (10 * step).log(), 0
        self._mean, self._average = torch.zeros_like(step), torch.zeros_like(step)

    def update(self, acceptance: Tensor) -> Tensor:
        """The next step after a move with this mean acceptance, of the steps' shape."""
        self._count += 1
        t = self._count
        share = 1 / (t + self._delay)
        self._mean = (1 - share) * self._mean + share * (self.wanted - acceptance.to(self._mean.dtype))
        logarithm = (self._towards - t**0.5 / self._gamma * self._mean).clamp(-30, 10)
        weight = t**-self._kappa
        self._average = weight * logarithm + (1 - weight) * self._average
        self.step = logarithm.exp()
        return self.step

    @property
    def final(self) -> Tensor:
        """The averaged step."""
        return self._average.exp() if self._count else self.step


def windows(moves: int) -> list[int]:
    """Moves after which the scales are estimated anew, from those since the last: windows that double, then steps alone.

    >>> windows(400)
    [40, 80, 340]
    """
    first, last = moves // 10, moves - (3 * moves) // 20
    found, width, end = [], first, first
    while end <= last and width >= 4:
        following = end + width
        found.append(end if following + width <= last + width // 2 else last)
        if found[-1] == last:
            break
        end, width = following, 2 * width
    return found
