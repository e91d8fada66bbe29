"""A conditional flow over the unsampled lines of the coil-combined image, with exact log-density."""

from sciflow_mri.model.null_space.draws import NullSpaceDraws, draw_null_space, soft_consistency
from sciflow_mri.model.null_space.encoder import ScanEncoder
from sciflow_mri.model.null_space.flow import Explosion, NoisyLikelihood, NullSpaceFlow
from sciflow_mri.model.null_space.lines import LineCoordinates, line_basis
from sciflow_mri.model.null_space.scans import draw_lines
from sciflow_mri.model.null_space.training import train_null_space

__all__ = [
    "Explosion",
    "LineCoordinates",
    "NoisyLikelihood",
    "NullSpaceDraws",
    "NullSpaceFlow",
    "ScanEncoder",
    "draw_lines",
    "draw_null_space",
    "line_basis",
    "soft_consistency",
    "train_null_space",
]
