"""Flow matching for the likelihood of the model as an ODE."""

from __future__ import annotations

from sciflow.transport.couplings.base import Coupling
from sciflow.transport.objectives.weighted import WeightedFlowMatching
from sciflow.transport.times import Importance, LikelihoodWeight, LogUniformNoise, Stratified

__all__ = ["LikelihoodFlowMatching"]


class LikelihoodFlowMatching(WeightedFlowMatching):
    r"""\int a / (s w) E|v(x_t, t) - u_t|^2 / features dt up to t = 1 - margin, by importance-sampled time.

    The evidence bound of the diffusion with the same marginals (see `LikelihoodWeight`; t / (1 - t) on the linear path), for a
    network that predicts the velocity. Times have density near 1 / (1 - t), where the weight is, so that weight over density is
    bounded and the gradient has little variance; one time from each of B strata. Better densities at the price of errors early
    on the path. The bound is not one of the ODE's own likelihood, for which errors of the score's derivatives count as well
    (the high-order terms of the source are not here).

    Arguments:
        margin: what is left out at the end of the path, where the weight is infinite.
        coupling, drop_condition: as for every transport objective.

    Source: Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs, Zheng et al. 2023, arXiv 2305.03935.
    """

    def __init__(self, *, margin: float = 1e-3, coupling: Coupling | None = None, drop_condition: float = 0.0) -> None:
        times = Stratified(Importance(LogUniformNoise(margin)))
        super().__init__(LikelihoodWeight(floor=margin), coupling=coupling, times=times, drop_condition=drop_condition)
