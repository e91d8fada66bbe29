"""Which noise meets which target: independent, optimal transport in its variants, given pairs."""

from sciflow.transport.couplings.base import Coupling, Independent
from sciflow.transport.couplings.conditional import ConditionalOT, WithinClasses
from sciflow.transport.couplings.exact import ExactOT
from sciflow.transport.couplings.given import Given
from sciflow.transport.couplings.prefetched import Prefetched
from sciflow.transport.couplings.schroedinger import SchroedingerCoupling
from sciflow.transport.couplings.sinkhorn import Sinkhorn
from sciflow.transport.couplings.unbalanced import PartialOT, UnbalancedOT
from sciflow.transport.couplings.weighted import WeightedCoupling

__all__ = [
    "ConditionalOT",
    "Coupling",
    "ExactOT",
    "Given",
    "Independent",
    "PartialOT",
    "Prefetched",
    "SchroedingerCoupling",
    "Sinkhorn",
    "UnbalancedOT",
    "WeightedCoupling",
    "WithinClasses",
]
