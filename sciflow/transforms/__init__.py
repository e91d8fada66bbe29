"""Bijections without weights."""

from sciflow.transforms.affine import Affine
from sciflow.transforms.base import Inverse, Transform
from sciflow.transforms.composition import Composition
from sciflow.transforms.linear import LU, Orthogonal
from sciflow.transforms.permutation import Permutation
from sciflow.transforms.spline import Spline
from sciflow.transforms.spline_kernel import rational_quadratic, slope_bounds

__all__ = [
    "LU",
    "Affine",
    "Composition",
    "Inverse",
    "Orthogonal",
    "Permutation",
    "Spline",
    "Transform",
    "rational_quadratic",
    "slope_bounds",
]
