"""What a scanner does: Fourier encoding, sampling, coils, noise. See the modules; none of them reads files."""

from sciflow_mri.physics.fourier import to_image, to_kspace
from sciflow_mri.physics.maps import compress_coils, sensitivity_maps
from sciflow_mri.physics.masks import calibration_block, fastmri_mask, line_mask, poisson_disc
from sciflow_mri.physics.noise import line_variance, mismatch, thermal_sigma
from sciflow_mri.physics.sense import Sense

__all__ = [
    "Sense",
    "calibration_block",
    "compress_coils",
    "fastmri_mask",
    "line_mask",
    "line_variance",
    "mismatch",
    "poisson_disc",
    "sensitivity_maps",
    "thermal_sigma",
    "to_image",
    "to_kspace",
]
