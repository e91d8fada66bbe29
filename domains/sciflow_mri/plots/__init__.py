"""Pictures of images and their uncertainty."""

from sciflow_mri.plots.posterior import posterior_figure
from sciflow_mri.plots.style import PALETTE, style, write_figure

__all__ = ["PALETTE", "posterior_figure", "style", "write_figure"]
