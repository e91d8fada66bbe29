"""The dot test: whether an adjoint is one."""

from __future__ import annotations

import torch

from sciflow.errors import UserError
from sciflow.posterior.operators.base import Linear, inner_product

__all__ = ["check_adjoint"]


def check_adjoint(
    operator: Linear, *, rows: int = 4, seed: int = 0, complex_domain: bool | None = None, dtype: torch.dtype | None = None
) -> float:
    """The largest |Re <A x, y> - Re <x, A' y>| / (|A x| |y|) over random rows. In half of them y leans towards A x, so that a
    wrong factor shows up in large spaces too.

    Arguments:
        complex_domain: whether x is complex; as the operator says, by default.
        dtype: real dtype of x; that of the operator's constants, or torch's default, by default.

    Raises `UserError` with the figure if it is larger than 1000 epsilon, `ValueError` if a shape is wrong.
    """
    generator = torch.Generator().manual_seed(seed)
    constants = [b for b in (*operator.buffers(), *operator.parameters()) if b.is_floating_point() or b.is_complex()]
    precisions = [b.dtype if b.is_floating_point() else b.real.dtype for b in constants]
    dtype = dtype if dtype is not None else (precisions[0] if precisions else torch.get_default_dtype())
    device = next((b.device for b in (*operator.buffers(), *operator.parameters())), torch.device("cpu"))
    is_complex = bool(operator.complex_domain) if complex_domain is None else complex_domain
    kind = dtype.to_complex() if is_complex else dtype
    x = torch.randn(rows, *operator.domain, dtype=kind, generator=generator).to(device)
    with torch.no_grad():
        forward = operator.check_output(operator(x))
        y = torch.randn(forward.shape, dtype=forward.dtype, generator=generator).to(device)
        leaning = (torch.arange(rows, device=device) % 2).reshape(-1, *[1] * (y.dim() - 1))
        scale = forward.abs().square().reshape(rows, -1).mean(1).sqrt().clamp_min(1e-30).reshape(leaning.shape)
        y = y + leaning * forward / scale
        back = operator.check_input(operator.adjoint(y))
    size = (inner_product(forward, forward) * inner_product(y, y)).sqrt()
    found = float(((inner_product(forward, y) - inner_product(x, back)).abs() / size.clamp_min(1e-30)).max())
    if not found <= 1000 * torch.finfo(dtype).eps:
        raise UserError(
            f"{type(operator).__name__}: the adjoint is wrong: <A x, y> and <x, A' y> differ by {found:.2g} of |A x| |y|"
        )
    return found
