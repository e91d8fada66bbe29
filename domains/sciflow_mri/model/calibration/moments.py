"""Second moments of coil vectors: what they are as a function of the parameters, and the parameters that match them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow_mri.model.calibration.forward import CoilModel

__all__ = ["Moments", "Whitening", "covariance", "first_sigma", "information", "match_moments", "moments"]

_STEPS, _CLOSE = 60, 1e-7


def covariance(vectors: Tensor) -> Tensor:
    """E m m' / 2 (places, C, C) of vectors (N, places, C): the variance of real and imaginary part each on the diagonal."""
    return torch.einsum("nrc,nrd->rcd", vectors, vectors.conj()) / (2 * len(vectors))


class Whitening(NamedTuple):
    """z = W m with E z z' / 2 = 1 over scans, loudest direction first: `matrix` W (places, C, C), `loudness` (places, C)."""

    matrix: Tensor
    loudness: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Whitening:
        """Raises `UserError` for fewer than 2 C scans, whose covariance would be singular or nearly so."""
        scans, _, coils = vectors.shape
        if scans < 2 * coils:
            raise UserError(f"calibration: {scans} scans of {coils} coils: give at least {2 * coils}")
        values, bases = torch.linalg.eigh(covariance(vectors))
        if not bool((values > 0).all()):
            raise UserError("calibration: the covariance of the scans is singular: scans or coils are copies")
        values, bases = values.flip(-1), bases.flip(-1)
        # the phase of an eigenvector is free: the largest entry real makes neighbouring places alike
        top = bases.gather(1, bases.abs().argmax(1, keepdim=True))
        bases = bases * (top.conj() / top.abs())
        return cls(values.rsqrt().unsqueeze(-1) * bases.mH, values)

    def __call__(self, vectors: Tensor) -> Tensor:
        return torch.einsum("rcd,nrd->nrc", self.matrix, vectors)

    def covariance(self, given: Tensor) -> Tensor:
        """W K W' of covariances (..., places, C, C)."""
        return self.matrix @ given @ self.matrix.mH


class Moments(NamedTuple):
    """K (places, C, C) of the model at theta, and its derivatives (count, places, C, C)."""

    covariance: Tensor
    slopes: Tensor


def moments(model: CoilModel, images: Tensor, theta: Tensor) -> Moments:
    r"""K(theta) = E m m' / 2 = A Sigma A' + sigma^2 over complex images (N, H, W), noise in closed form; and dK / d theta.

    dm_c = (F_b' M_b F S_c phi_p x) times 1 for g_p, B_ck for Re b_kp and i B_ck for Im b_kp, so that one simulation per
    polynomial does.
    """
    maps, sigma = model.maps_at(theta, common=True), theta[0].exp()
    clean = model.with_maps(images, maps)
    eye = torch.eye(model.coils, dtype=clean.dtype, device=clean.device)
    found = covariance(clean) + sigma.square() * eye
    slopes = [(2 * sigma.square() * eye).expand_as(found)]
    cross = [
        torch.einsum("nrc,nrd->rcd", clean if p == 0 else model.with_maps(images, maps * phi), clean.conj()) / (2 * len(images))
        for p, phi in enumerate(model.basis)
    ]
    slopes += [each + each.mH for each in cross]
    for unit in (1.0, 1.0j):
        for column in model.gauge.T:
            for each in cross:
                half = unit * column.to(each.dtype).unsqueeze(1) * each
                slopes.append(half + half.mH)
    return Moments(found, torch.stack(slopes))


def information(covariance: Tensor, slopes: Tensor) -> Tensor:
    """Fisher information of one scan, sum_r tr(K^-1 dK K^-1 dK), (count, count): of independent normal vectors."""
    values, bases = torch.linalg.eigh(covariance)
    half = bases * values.rsqrt().unsqueeze(1)
    inner = (half.mH @ slopes @ half).flatten(1)
    return (inner @ inner.mH).real


def first_sigma(vectors: Tensor) -> float:
    """A first guess: the square root of the lowest decile over places of the smallest eigenvalue of the covariance."""
    least = torch.linalg.eigvalsh(covariance(vectors))[:, 0].clamp_min(0)
    return max(float(least.quantile(0.1)) ** 0.5, 1e-12)


def match_moments(model: CoilModel, vectors: Tensor, images: Tensor, theta: Tensor | None = None) -> Tensor:
    r"""The parameters whose covariances fit best: the baseline, and the start of matching by flows.

    Minimises over theta, by Gauss-Newton with the Fisher information and halved steps,

        sum_r tr(K(theta)^-1 K_measured) + log det K(theta)  +  theta' Lambda theta / (2 N),

    the negative log-likelihood of N scans with normal vectors and the prior Lambda of `CoilModel.precision`. For normal images
    it is that of maximum likelihood per place; for others it is consistent, as only covariances have to be right.

    Arguments:
        vectors: measured, (N, places, C).
        images: complex (N', H, W).
    """
    target = covariance(vectors)
    theta = model.start(first_sigma(vectors)) if theta is None else theta
    prior = model.precision / len(vectors)

    def objective(at: Tensor) -> float:
        found = covariance(model.with_maps(images, model.maps_at(at, common=True)))
        found = found + (2 * at[0]).exp() * torch.eye(model.coils, dtype=found.dtype, device=found.device)
        factor, failed = torch.linalg.cholesky_ex(found)
        if bool(failed.any()):
            return math.inf
        fit = torch.cholesky_solve(target, factor).diagonal(dim1=1, dim2=2).real.sum()
        depth = 2 * factor.diagonal(dim1=1, dim2=2).real.log().sum()
        return float(fit + depth + 0.5 * (prior * at.square()).sum())

    best = objective(theta)
    for _ in range(_STEPS):
        found = moments(model, images, theta)
        inverse = torch.linalg.inv(found.covariance)
        residual = inverse - inverse @ target @ inverse
        slope = torch.einsum("rcd,krdc->k", residual, found.slopes).real + prior * theta
        curvature = information(*found) + torch.diag(prior)
        step = torch.linalg.solve(curvature + 1e-10 * torch.diag(curvature.diagonal().clamp_min(1e-30)), slope)
        step = step / max(1.0, float(step.abs().max()))
        length = 1.0
        while length > 1e-4:
            value = objective(theta - length * step)
            if value < best:
                break
            length /= 2
        else:
            break
        gained, best, theta = best - value, value, theta - length * step
        if gained < _CLOSE * model.places:
            break
    return theta
