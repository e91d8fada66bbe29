"""Monotone rational-quadratic splines of raw parameters: the hot path of spline flows."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.transforms.spline_formula import bins_of, plain
from sciflow.transforms.spline_function import Spline, backward_eager, forward_eager

__all__ = ["rational_quadratic"]


def rational_quadratic(
    x: Tensor, parameters: Tensor, *, bound: float, circular: bool = False, inverse: bool = False, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """y and log |dy/dx|, elementwise."""
    bins = bins_of(parameters, circular)
    if parameters.shape[1:] != x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, the parameters {tuple(parameters.shape)}: expected (rows, *x.shape)")
    if parameters.dtype != x.dtype:
        parameters = parameters.to(x.dtype)
    bound = float(bound)
    if bins == 1 or _needs_plain(x, parameters):
        return plain(x, parameters, bound, circular, inverse)
    if compiled and x.numel() > 1 and x.device.type != "meta":
        from sciflow.transforms.spline_compiled import backward_compiled, forward_compiled

        bodies = forward_compiled, backward_compiled
    else:
        bodies = forward_eager, backward_eager
    if torch.is_grad_enabled() and (x.requires_grad or parameters.requires_grad):
        return Spline.apply(x, parameters, bound, circular, inverse, bodies)
    with torch.no_grad():
        return bodies[0](x, parameters, bound, circular, inverse)


def _needs_plain(*tensors: Tensor) -> bool:
    """Whether something other than first-order reverse mode is at work: transforms, forward mode, tracing, export."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or type(tensors[0]) not in (Tensor, torch.nn.Parameter)
    )
