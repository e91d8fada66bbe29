"""Evidence: estimators beside those of the samplers, their agreement, and Bayes factors."""

from sciflow.posterior.evidence.agreement import BayesFactor, agreement, bayes_factor
from sciflow.posterior.evidence.harmonic_mean import HarmonicMean, HarmonicMeanEvidence

__all__ = ["BayesFactor", "HarmonicMean", "HarmonicMeanEvidence", "agreement", "bayes_factor"]
