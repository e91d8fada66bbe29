"""Calibration without ground truth: noise and coil maps from populations of scans and of images that are not paired."""

from sciflow_mri.model.calibration.calibrate import METHODS, Calibration, calibrate
from sciflow_mri.model.calibration.forward import CoilModel
from sciflow_mri.model.calibration.matching import FlowMatch, affine_curvature, affine_slope, flow_slope
from sciflow_mri.model.calibration.moments import Whitening, covariance, information, match_moments, moments
from sciflow_mri.model.calibration.velocity import PlaceVelocity, place_flow

__all__ = [
    "METHODS",
    "Calibration",
    "CoilModel",
    "FlowMatch",
    "PlaceVelocity",
    "Whitening",
    "affine_curvature",
    "affine_slope",
    "calibrate",
    "covariance",
    "flow_slope",
    "information",
    "match_moments",
    "moments",
    "place_flow",
]
