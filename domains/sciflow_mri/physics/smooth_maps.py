"""Coil sensitivities given an image: a linear problem, with a smooth normal prior and an exact answer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sciflow_mri.physics.fourier import to_kspace

__all__ = ["MapFit", "cosines", "fit_maps", "prior_variance"]

_SIZE, _POWER = 2.0, 2.7


class MapFit(NamedTuple):
    """Posterior mean of the maps (coil, y, x), not normalised, and what it leaves open of each line (coil, ky): the variance,
    of real and imaginary part each, of entries of that line, over the posterior of the maps; 0 where nothing is measured."""

    maps: Tensor
    variance: Tensor


def cosines(size: int, order: int) -> Tensor:
    """The first cosines (size, order) of an interval, orthonormal in the sum over pixels: smooth, and free at both ends.

    cos(pi p (n + 1/2) / N) times (2 / N)^(1/2), or N^(-1/2) for p = 0: those of the discrete cosine transform II.

    >>> basis = cosines(16, 5)
    >>> bool(torch.allclose(basis.T @ basis, torch.eye(5, dtype=torch.float64)))
    True
    """
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    basis = torch.cos(torch.pi * torch.outer(place, torch.arange(order, dtype=torch.float64))) * (2 / size) ** 0.5
    basis[:, 0] /= 2**0.5
    return basis


def prior_variance(height: int, width: int, coils: int, order: int) -> Tensor:
    r"""E |a_pq|^2 (order, order) of the coefficients of one coil's sensitivities in products of `cosines`, where
    sum_c |S_c|^2 = 1:

        E |a_pq|^2 = 2 pixels / coils (1 + p^2 + q^2)^-2.7.

    Of loops at the edges of the field of view (`sciflow_mri.model.simulated.coil_maps`) it is about that at all orders above 0;
    at order 0, which the data know, it is four times too much on purpose.

    >>> prior_variance(64, 64, 8, 8)[1, 1] / prior_variance(64, 64, 8, 8)[0, 0] == 3**-2.7
    tensor(True)
    """
    p = torch.arange(order, dtype=torch.float64)
    return _SIZE * height * width / coils * (1 + p.square().unsqueeze(1) + p.square()) ** -_POWER


def fit_maps(kspace: Tensor, mask: Tensor, images: Tensor, variance: Tensor, *, order: int = 8) -> MapFit:
    r"""The maps of k-space whose image is known up to draws x_r, which are averaged over: the M step of EM.

    For each coil y = M F (S x) + e with S = sum_pq a_pq c_p(y) c_q(x), a_pq ~ N(0, `prior_variance`) and e ~ N(0, 2 v_l) on
    line l. With D_r the (entries, order^2) matrix of the measured k-space of c_p c_q x_r,

        P = mean_r D_r' (2 v)^-1 D_r + prior^-1,   a = P^-1 mean_r D_r' (2 v)^-1 y,

    maximises the mean over draws of the log posterior of a. The variance of line l is tr(mean_r D_rl' D_rl P^-1) / 2 / its
    entries. With one x that is exact the maps are the posterior mean.

    The order stays small, so that maps are smooth, but, other than with a Fourier basis or patches of k-space, not periodic:
    they may differ at opposite ends of the field of view.

    Arguments:
        kspace: (coil, ky, kx), complex; unmeasured entries are not looked at.
        mask: booleans (ky,) or (ky, kx).
        images: x_r (draw, y, x), complex, in the units of k-space.
        variance: v (coil, ky), of real and imaginary part each.
        order: of cosines along y and x each, at most their number of pixels.

    Returns maps in the dtype of k-space; computed in double precision.

    Source: JSENSE: Joint image reconstruction and sensitivity estimation in SENSE, Ying and Sheng, Magnetic Resonance in
    Medicine 57, 2007, which alternates least squares with polynomials.

    >>> x, basis = torch.randn(1, 16, 16, dtype=torch.complex128), cosines(16, 3).to(torch.complex128)
    >>> S = torch.einsum("yp,xq,cpq->cyx", basis, basis, torch.randn(2, 3, 3, dtype=torch.complex128))
    >>> fit = fit_maps(to_kspace(S * x), torch.ones(16, dtype=torch.bool), x, torch.full((2, 16), 1e-9), order=3)
    >>> bool(torch.allclose(fit.maps, S, atol=1e-3))
    True
    """
    coils, height, width = kspace.shape
    if images.dim() != 3 or images.shape[1:] != kspace.shape[1:] or variance.shape != (coils, height):
        raise ValueError(
            f"images have shape {tuple(images.shape)}, variances {tuple(variance.shape)} and k-space {tuple(kspace.shape)}: "
            "expected (draw, ky, kx), (coil, ky) and (coil, ky, kx)"
        )
    if mask.shape not in (kspace.shape[1:2], kspace.shape[1:]):
        raise ValueError(f"the mask has shape {tuple(mask.shape)}, k-space {tuple(kspace.shape)}")
    wide, device = torch.complex128, kspace.device
    measured = (mask.bool() if mask.dim() == 2 else mask.bool().unsqueeze(1).expand(height, width)).to(device)
    down, across = (cosines(size, min(order, size)).to(device, wide) for size in (height, width))
    terms = down.shape[1] * across.shape[1]
    data = torch.where(measured, kspace, 0).to(wide)
    normal = torch.zeros(height, terms, terms, dtype=wide, device=device)  # of each line
    back = torch.zeros(coils, height, terms, dtype=wide, device=device)
    for image in images.to(wide):  # one by one: (terms, y, x) numbers at a time
        seen = to_kspace(torch.einsum("yp,xq,yx->pqyx", down, across, image).flatten(0, 1)) * measured
        lines = seen.permute(1, 2, 0)
        normal += lines.mH @ lines / len(images)
        back += torch.einsum("lwk,clw->clk", lines.conj(), data) / len(images)
    weight = 0.5 / variance.double().to(device)
    prior = prior_variance(height, width, coils, order)[: down.shape[1], : across.shape[1]].flatten().to(device)
    precision = torch.einsum("cl,lkj->ckj", weight.to(wide), normal) + torch.diag(1 / prior).to(wide)
    factor = torch.linalg.cholesky(precision)
    coefficients = torch.cholesky_solve(torch.einsum("cl,clk->ck", weight.to(wide), back).unsqueeze(2), factor)[..., 0]
    maps = torch.einsum("yp,xq,cpq->cyx", down, across, coefficients.reshape(coils, down.shape[1], across.shape[1]))
    left = torch.einsum("lkj,cjk->cl", normal, torch.cholesky_inverse(factor)).real
    entries = measured.sum(1).clamp_min(1)
    return MapFit(maps.to(kspace.dtype), (left / entries / 2).to(kspace.real.dtype))
