"""Two analytic generators with known conditional quantiles, and the coverage of a correction between them."""

from sciflow_physics.truth.generators import FEATURES, ROLES, draw, quantile, roles, zero_probability

__all__ = ["FEATURES", "ROLES", "draw", "quantile", "roles", "zero_probability"]
