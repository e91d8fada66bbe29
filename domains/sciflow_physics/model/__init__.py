"""The correction: flows, marginals and weights, and how they are learned."""

from sciflow_physics.model.correction import Correction, fit_correction

__all__ = ["Correction", "fit_correction"]
