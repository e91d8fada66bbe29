"""Networks that hyper-parameterise flows, computed features-first: (inputs, rows) -> (outputs, rows)."""

from sciflow.networks.masked import MaskedMLP
from sciflow.networks.mlp import MLP, Constant

__all__ = ["MLP", "Constant", "MaskedMLP"]
