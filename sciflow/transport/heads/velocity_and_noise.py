"""Velocity and noise of a noisy path: the second head that gives it a score."""

from __future__ import annotations

from torch import Tensor

from sciflow.networks.time_network import expand_time
from sciflow.transport.heads.base import Head, mean_square
from sciflow.transport.pair import Bridge
from sciflow.transport.paths.base import Path
from sciflow.transport.paths.noisy import NoisyPath

__all__ = ["VelocityAndNoise"]


class VelocityAndNoise(Head):
    r"""Two channels, w = E[a' x1 + s' x0 | xt] and n = E[eps | xt] on x_t = a x1 + s x0 + gamma eps, by mean squared error.

    Then v = w + gamma' n, score = -n / gamma for any base and coupling, and E[x1 | xt] is that of the mean path at
    xt - gamma n. Both targets are bounded, though gamma' need not be.

    Source: Stochastic Interpolants: A Unifying Framework for Flows and Diffusions, Albergo, Boffi and Vanden-Eijnden 2023,
    arXiv 2303.08797; Simulation-free Schroedinger bridges via score and flow matching, Tong et al. 2023, arXiv 2307.03672.
    """

    channels = 2
    needs_noise = True

    def velocity(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        return out[:, 0] + _noisy(path).gamma_rate(expand_time(t, xt).to(xt.dtype)) * out[:, 1]

    def endpoint(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        path = _noisy(path)
        return path.mean.endpoint_from_velocity(out[:, 0], xt - path.deviation(t, xt) * out[:, 1], t)

    def noise(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        return out[:, 1]

    def nll(self, out: Tensor, bridge: Bridge, path: Path) -> Tensor:
        pair = bridge.pair
        _, _, da, ds = _noisy(path).mean.at(bridge.t, pair.x1)
        assert bridge.noise is not None
        w = da * pair.x1 + ds * pair.x0
        return mean_square(out[:, 0] - w, pair.mask) + mean_square(out[:, 1] - bridge.noise, pair.mask)


def _noisy(path: Path) -> NoisyPath:
    if not isinstance(path, NoisyPath):
        path._no("noise of its own: the head VelocityAndNoise needs a noisy path such as SchroedingerBridge")
    return path
