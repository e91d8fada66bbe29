"""A conditional flow over the unsampled lines of the coil-combined image, with exact log-density."""

from sciflow_mri.model.null_space.draws import NullSpaceDraws, draw_null_space, soft_consistency
from sciflow_mri.model.null_space.encoder import ScanEncoder
from sciflow_mri.model.null_space.flow import Explosion, NoisyLikelihood, NullSpaceFlow
from sciflow_mri.model.null_space.lines import LineCoordinates, line_basis

__all__ = [
    "Explosion",
    "LineCoordinates",
    "NoisyLikelihood",
    "NullSpaceDraws",
    "NullSpaceFlow",
    "ScanEncoder",
    "draw_null_space",
    "line_basis",
    "soft_consistency",
]
