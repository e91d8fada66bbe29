"""Samplers: methods whose draws are the posterior's in the limit of computation."""

from sciflow.posterior.samplers.adaptive_flow import AdaptiveFlow
from sciflow.posterior.samplers.annealed import AnnealedImportance
from sciflow.posterior.samplers.annealed_langevin import AnnealedLangevin
from sciflow.posterior.samplers.annealed_transition import Transition
from sciflow.posterior.samplers.defensive import Defensive
from sciflow.posterior.samplers.diffusion_sampler import DiffusionSampler
from sciflow.posterior.samplers.equal_calls import plain_chain
from sciflow.posterior.samplers.hamiltonian import Hamiltonian
from sciflow.posterior.samplers.importance import Importance
from sciflow.posterior.samplers.independence import Independence
from sciflow.posterior.samplers.langevin import Langevin
from sciflow.posterior.samplers.latent import LatentHamiltonian
from sciflow.posterior.samplers.local import Local
from sciflow.posterior.samplers.metropolis import Metropolis
from sciflow.posterior.samplers.neutra import NeuTra
from sciflow.posterior.samplers.proposal import Proposal
from sciflow.posterior.samplers.smc import TemperedSMC
from sciflow.posterior.samplers.stochastic_flow import StochasticFlow
from sciflow.posterior.samplers.tempered import Tempered
from sciflow.posterior.samplers.twisted import TwistedSMC
from sciflow.posterior.samplers.twisted_functions import DPSTwist, NoTwist, PiGDMTwist, Twist
from sciflow.posterior.samplers.until_settled import UntilSettled

__all__ = [
    "AdaptiveFlow",
    "AnnealedImportance",
    "AnnealedLangevin",
    "DPSTwist",
    "Defensive",
    "DiffusionSampler",
    "Hamiltonian",
    "Importance",
    "Independence",
    "Langevin",
    "LatentHamiltonian",
    "Local",
    "Metropolis",
    "NeuTra",
    "NoTwist",
    "PiGDMTwist",
    "Proposal",
    "StochasticFlow",
    "Tempered",
    "TemperedSMC",
    "Transition",
    "Twist",
    "TwistedSMC",
    "UntilSettled",
    "plain_chain",
]
