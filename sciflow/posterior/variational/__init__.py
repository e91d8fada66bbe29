"""Variational training on an energy: divergences, path gradients, and draws with forward diagnostics."""

from sciflow.posterior.variational.alpha_two import FAB
from sciflow.posterior.variational.fitting import fit_energy
from sciflow.posterior.variational.forward_kl import ForwardKL
from sciflow.posterior.variational.objective import EnergyObjective
from sciflow.posterior.variational.path import carried, carried_twice
from sciflow.posterior.variational.reverse_kl import ReverseKL
from sciflow.posterior.variational.sampler import VariationalPosterior

__all__ = [
    "FAB",
    "EnergyObjective",
    "ForwardKL",
    "ReverseKL",
    "VariationalPosterior",
    "carried",
    "carried_twice",
    "fit_energy",
]
