"""Flow matching for the likelihood of the model as an ODE."""

from __future__ import annotations

from sciflow.errors import UserError
from sciflow.training import Batch
from sciflow.transport.couplings.base import Coupling
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.weighted import WeightedFlowMatching
from sciflow.transport.pair import Pair
from sciflow.transport.times import Importance, LikelihoodWeight, LogUniformNoise, Stratified

__all__ = ["LikelihoodFlowMatching"]


class LikelihoodFlowMatching(WeightedFlowMatching):
    r"""\int a / (s w) E|v(x_t, t) - u_t|^2 / features dt up to t = 1 - margin, by importance-sampled time.

    The evidence bound of the diffusion with the same marginals (see `LikelihoodWeight`; t / (1 - t) on the linear path), for a
    network that predicts the velocity. Times have density near 1 / (1 - t), where the weight is, so that weight over density is
    bounded and the gradient has little variance; one time from each of B strata. Better densities at the price of errors early
    on the path.

    What is bounded, up to a constant and the part left out at the end, is E[-log p(x_1)] under the *stochastic* reversal of the
    diffusion, noise standard normal and independent of the data: so other bases, couplings and given sources are refused. It
    does not bound the likelihood of the ODE, which is what `log_prob` is: there errors of the score's derivatives count as
    well (the high-order terms of the source are not here).

    Arguments:
        margin: what is left out at the end of the path, where the weight is infinite.
        coupling: `Independent`, the default, is the only one.
        drop_condition: as for every transport objective.

    Raises `UserError` for given sources, and for a base or a coupling of which it is no bound.

    Source: Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs, Zheng et al. 2023, arXiv 2305.03935.
    """

    diffusion_only = True

    def __init__(self, *, margin: float = 1e-3, coupling: Coupling | None = None, drop_condition: float = 0.0) -> None:
        times = Stratified(Importance(LogUniformNoise(margin)))
        super().__init__(LikelihoodWeight(floor=margin), coupling=coupling, times=times, drop_condition=drop_condition)

    def pair(self, flow: TransportFlow, batch: Batch) -> Pair:
        if batch.source is not None:
            raise UserError(
                "LikelihoodFlowMatching is the bound of a diffusion from noise: use WeightedFlowMatching for sources"
            )
        return super().pair(flow, batch)
