"""Methods that do not reach the posterior in any limit: their draws are estimates, and say so."""

from sciflow.posterior.estimators.d_flow import DFlow
from sciflow.posterior.estimators.dps import DPS
from sciflow.posterior.estimators.flow_chef import FlowChef
from sciflow.posterior.estimators.flow_dps import FlowDPS
from sciflow.posterior.estimators.flow_lps import FlowLPS
from sciflow.posterior.estimators.flow_priors import FlowPriors
from sciflow.posterior.estimators.mmd_flow import MMDFlow
from sciflow.posterior.estimators.ot_ode import OTODE
from sciflow.posterior.estimators.pnp_flow import PnPFlow
from sciflow.posterior.estimators.pseudo_inverse import PseudoInverse
from sciflow.posterior.estimators.search import RolloverSearch
from sciflow.posterior.estimators.sliced_wasserstein import SlicedWasserstein

__all__ = [
    "DFlow",
    "DPS",
    "FlowChef",
    "FlowDPS",
    "FlowLPS",
    "FlowPriors",
    "MMDFlow",
    "OTODE",
    "PnPFlow",
    "PseudoInverse",
    "RolloverSearch",
    "SlicedWasserstein",
]
