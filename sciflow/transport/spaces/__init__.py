"""Where points live: Euclidean space, torus, sphere, rotations, hyperbolic ball, simplex, box with walls, products."""

from sciflow.transport.spaces.base import Euclidean, Space
from sciflow.transport.spaces.box import Box
from sciflow.transport.spaces.hyperbolic import HyperbolicBall
from sciflow.transport.spaces.mean_free import MeanFreeSpace
from sciflow.transport.spaces.product import ProductSpace
from sciflow.transport.spaces.rotations import Rotations
from sciflow.transport.spaces.simplex import Simplex
from sciflow.transport.spaces.sphere import Sphere
from sciflow.transport.spaces.torus import Torus

__all__ = [
    "Box",
    "Euclidean",
    "HyperbolicBall",
    "MeanFreeSpace",
    "ProductSpace",
    "Rotations",
    "Simplex",
    "Sphere",
    "Space",
    "Torus",
]
