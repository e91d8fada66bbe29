"""Noise and coil maps of a scanner from its scans and from images of others, with errors and what cannot be told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.noise import uniform
from sciflow_mri.model.calibration.forward import CoilModel
from sciflow_mri.model.calibration.matching import FlowMatch
from sciflow_mri.model.calibration.moments import Whitening, covariance, information, match_moments, moments

__all__ = ["METHODS", "Calibration", "calibrate"]

METHODS = ("moments", "affine", "flow")
_LOG_SIGMA, _HALF, _MISFIT = 0.25, 0.5, 3.0


@dataclass(frozen=True)
class Calibration:
    """What the scans say of their scanner.

    Attributes:
        sigma, sigma_error: standard deviation of the noise, of real and imaginary part each, and its standard error.
        maps: nominal maps times the mismatch (C, H, W), complex128, without the common factor.
        mismatch, mismatch_error: a (C, terms), complex, whose sum over coils is 0, and its standard error (C, terms), real and
            imaginary part together.
        common: g (terms,): log brightness of the images times common gain, which is no property of the coils alone.
        theta, samples: all parameters (count,), and those of the resamples (resamples, count), which errors are made of.
        misfit: how far covariances of scans and of simulations are apart, in units of what finite populations of normal
            vectors would be; well above 1, the model (images, coils, noise) does not explain the scans.
        notes: what the data cannot tell or do not fit, a sentence each; empty if nothing is amiss.
        method: one of `METHODS`.
        path: theta after each round of the flows (rounds, count).
    """

    sigma: float
    sigma_error: float
    maps: Tensor
    mismatch: Tensor
    mismatch_error: Tensor
    common: Tensor
    theta: Tensor
    samples: Tensor
    misfit: float
    notes: tuple[str, ...]
    method: str
    path: Tensor


def calibrate(
    model: CoilModel, scans: Any, images: Any, *, method: str = "moments", resamples: int = 20, seed: int = 0, **options: Any
) -> Calibration:
    r"""The noise level and map mismatch under which simulated scans of `images` are distributed as `scans` are.

    Nothing is paired: scans and images may be of other people and of other numbers; maps and noise are one setting's. Images
    have to be of the same population, up to a smooth brightness: what they lack (fine structure, artefacts) is taken for noise.

    "moments" matches covariances alone by likelihood (`match_moments`); "flow" starts there and matches whole distributions of
    coil vectors by flow matching (`FlowMatch`), some 5 s of one core for 100 scans of 4 coils; "affine" is "flow" without
    networks: covariances again, but by the loss of flows, which forgives large ratios of them. On simulated heads of other
    people than the images (benchmarks/mri_calibration.md) that forgiveness, not the networks, makes nearly all of the
    difference between "moments" and "flow". Errors are the standard deviation over
    resamples of scans and images, both with replacement; without resamples they are those of normal vectors that are
    independent between places, which is optimistic. They know nothing of a difference between the populations, nor of maps that
    are wrong by more than a polynomial: with nominal maps of ESPIRiT from 8 of 32 lines of one scan every method leaves them
    wrong by a fifth to a third, with a small stated error. The `misfit` of "moments" tells; that of the others, about 2, does
    not.

    Arguments:
        model: nominal maps, calibration lines and degree of the mismatch.
        scans: k-space (N, C, H, W), complex; at least 2 C of them, of which the calibration lines alone are looked at.
        images: (N', 2, H, W), real and imaginary part, such as `training_images`.
        resamples: 0, or 2 and more.
        options: of `FlowMatch`: hidden, affine, epochs, refresh, rounds, steps.

    Raises `UserError` if shapes do not fit, scans are damaged or too few, or for an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: give one of {', '.join(METHODS)}")
    resamples, seed = integer("resamples", resamples, 0, 10_000), integer("seed", seed, 0, 2**31)
    if resamples == 1:
        raise UserError("resamples=1 has no spread: give 0 or at least 2")
    vectors, clean = model.measured(scans), model.complex_images(images)
    if len(clean) < 2 * model.coils:
        raise UserError(f"calibration: {len(clean)} images for {model.coils} coils: give at least {2 * model.coils}")
    if not bool((clean != 0).any()):
        raise UserError("calibration: all images are zero: there is nothing that coils could see")
    whitening = Whitening.of(vectors)
    if method == "affine":
        options["hidden"] = ()
    flows = FlowMatch(model, whitening, seed=seed, **options)
    theta = match_moments(model, vectors, clean)
    path: list[Tensor] = []
    if method != "moments":
        theta, path = flows.run(vectors, clean, theta)
    found = []
    for number in range(resamples):
        rows, others = (_drawn(seed, 2 * number + part, len(each), theta.device) for part, each in enumerate((vectors, clean)))
        sample = match_moments(model, vectors[rows], clean[others], theta)
        if method != "moments":
            again = replace(flows, rounds=max(2, flows.rounds // 2), seed=seed + 50_000 * (number + 1))
            sample, _ = again.run(vectors[rows], clean[others], sample)
        found.append(sample)
    samples = torch.stack(found) if found else theta.new_zeros(0, len(theta))
    expected, misfit, notes = _certificate(model, whitening, vectors, clean, theta)
    spread = samples.std(0) if resamples else expected.diagonal().sqrt()
    mismatch, error = model.coefficients(theta)[1], _mismatch_error(model, samples, expected)
    sigma = float(theta[0].exp())
    return Calibration(
        sigma, sigma * float(spread[0]), model.maps_at(theta), mismatch, error, model.coefficients(theta)[0], theta, samples,
        misfit, notes, method, torch.stack(path) if path else theta.new_zeros(0, len(theta)),
    )  # fmt: skip


def _drawn(seed: int, number: int, count: int, device: torch.device) -> Tensor:
    """Row numbers (count,), with replacement."""
    return (uniform(seed, "calibration resamples", number, count).to(device) * count).long()


def _mismatch_error(model: CoilModel, samples: Tensor, expected: Tensor) -> Tensor:
    if len(samples):
        drawn = torch.stack([model.coefficients(sample)[1] for sample in samples])
        return (drawn - drawn.mean(0)).abs().square().sum(0).div(len(drawn) - 1).sqrt()
    variance = expected.diagonal()[1 + model.terms :].reshape(2, model.coils - 1, model.terms).sum(0)
    return (model.gauge.square() @ variance).sqrt()


def _certificate(
    model: CoilModel, whitening: Whitening, vectors: Tensor, images: Tensor, theta: Tensor
) -> tuple[Tensor, float, tuple[str, ...]]:
    """The covariance (count, count) of theta for independent normal vectors, the misfit, and what the data cannot tell."""
    at = moments(model, images, theta)
    number = 1 / (1 / len(vectors) + 1 / len(images))  # both populations are finite
    weak = torch.full((model.count,), 1e-9, dtype=theta.dtype, device=theta.device)
    precision = number * information(*at)
    expected = torch.linalg.inv(precision + torch.diag(model.precision + weak))
    notes = []
    if float(expected[0, 0]) ** 0.5 > _LOG_SIGMA:
        notes.append(
            f"the noise level cannot be told from these data: the loss is flat in log sigma (standard error "
            f"{float(expected[0, 0]) ** 0.5:.2g} at best), as signal covers the noise in every direction of the coils"
        )
    directions = expected[1 + model.terms :, 1 + model.terms :]
    lost = int((torch.linalg.eigvalsh(directions) > (_HALF * model.size) ** 2).sum()) if len(directions) else 0
    if lost:
        notes.append(
            f"{lost} of {len(directions)} directions of the map mismatch cannot be told from these data: their estimates are "
            "the prior's, not the scans' (more scans, more signal or a lower degree would help)"
        )
    apart = whitening.covariance(at.covariance) - whitening.covariance(covariance(vectors))
    misfit = float(apart.abs().square().sum() / (model.places * model.coils**2 / number)) ** 0.5
    if misfit > _MISFIT:
        notes.append(
            f"the model does not explain the scans: covariances differ {misfit:.1f} times as much as finite populations would "
            "let them; images of another kind, or coils and noise beyond the model, bias every number here"
        )
    return expected, misfit, tuple(notes)
