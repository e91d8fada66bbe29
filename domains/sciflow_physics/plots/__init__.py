"""Figures in the field's style: points for data, ratio panels, statistical and systematic bands."""

from sciflow_physics.plots.distributions import Drawn, distribution_figure
from sciflow_physics.plots.profiles import profile_figure
from sciflow_physics.plots.style import PALETTE, figure, label, write_figure
from sciflow_physics.plots.summaries import auc_figure, correlation_figure, distance_figure

__all__ = [
    "PALETTE",
    "Drawn",
    "auc_figure",
    "correlation_figure",
    "distance_figure",
    "distribution_figure",
    "figure",
    "label",
    "profile_figure",
    "write_figure",
]
