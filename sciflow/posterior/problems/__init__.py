"""Problems with known answers."""

from sciflow.posterior.problems.free_spectrum import FreeSpectrum, SplitNormal
from sciflow.posterior.problems.linear_gaussian import LinearGaussian
from sciflow.posterior.problems.many_well import ManyWell
from sciflow.posterior.problems.mixture import GaussianMixtureFlow

__all__ = ["FreeSpectrum", "GaussianMixtureFlow", "LinearGaussian", "ManyWell", "SplitNormal"]
