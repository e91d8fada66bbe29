"""What a measurement does to x."""

from sciflow.posterior.operators.base import Linear, Operator
from sciflow.posterior.operators.check import check_adjoint
from sciflow.posterior.operators.complex import ToComplex, ToPairs
from sciflow.posterior.operators.composition import Composition, NonlinearComposition, compose
from sciflow.posterior.operators.convolution import Convolution
from sciflow.posterior.operators.dense import Dense
from sciflow.posterior.operators.diagonal import Diagonal, Scaled
from sciflow.posterior.operators.downsample import Downsample
from sciflow.posterior.operators.foreign import ForeignLinear, ForeignOperator, foreign
from sciflow.posterior.operators.fourier import FourierMask
from sciflow.posterior.operators.function import Function
from sciflow.posterior.operators.identity import Identity
from sciflow.posterior.operators.mask import Mask
from sciflow.posterior.operators.stack import NonlinearStack, Stack, stack

__all__ = [
    "Composition",
    "Convolution",
    "Dense",
    "Diagonal",
    "Downsample",
    "ForeignLinear",
    "ForeignOperator",
    "FourierMask",
    "Function",
    "Identity",
    "Linear",
    "Mask",
    "NonlinearComposition",
    "NonlinearStack",
    "Operator",
    "Scaled",
    "Stack",
    "ToComplex",
    "ToPairs",
    "check_adjoint",
    "compose",
    "foreign",
    "stack",
]
