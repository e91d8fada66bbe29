"""What a prior finds in an acquisition: how far its denoiser moves the image, and what its network sees in it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.networks import UNet
from sciflow.posterior.randomness import Randomness
from sciflow.transport.denoiser import as_denoiser
from sciflow_mri.physics.sense import Sense
from sciflow_mri.posterior.acquisition import Acquisition
from sciflow_mri.posterior.features import DATA_SCALE, calibration, damped

__all__ = ["LEVELS", "PRIOR_FEATURES", "network_width", "prior_features"]

LEVELS = (0.36, 0.2, 0.1)  # noise, in units of the prior
_KINDS = ("denoising error", "step of the data", "residual of calibration lines", "residual of other lines",
          "error at high frequencies")  # fmt: skip
HELD_OUT_FEATURES = ("error of lines that were held out", "worst error of lines that were held out", "image without them")
PRIOR_FEATURES = (*(f"{kind} at noise {level:g}" for level in LEVELS for kind in _KINDS), *HELD_OUT_FEATURES)


@torch.no_grad()
def prior_features(
    acquisitions: Sequence[Acquisition], prior: Any, *, bf16: bool = True, seed: int = 0
) -> tuple[Tensor, Tensor]:
    r"""`PRIOR_FEATURES` (n, F) and pooled activations of the prior's U-Net (n, W), float64.

    The image starts at the damped one. At each noise s of `LEVELS`, x_s = x + s n, D = E[x_1 | x_s], and x becomes the
    posterior mean for the prior N(D, r^2), r = s d / hypot(s, d). Features are logarithms of |D - x|^2 / 2N, of what
    the data change, |x' - D|^2 / 2N, of |y - A D|^2 / 2n on calibration and other lines, and of the part of D - x above half
    of the highest frequency. Activations are means over pixels of the last block of each level on the way down and up, at
    the two lower noises. The last features are those of the same steps without every other line beside the calibration: how
    well these are predicted, log |y - A D|^2 / |y|^2 over both halves and of the worst line, and how far the image moved.
    The noise n depends on the seed alone, so that an acquisition has one value of each.

    Raises `UserError` for a prior without U-Net or of another size.
    """
    _fitting(acquisitions, prior)
    denoise = as_denoiser(prior)
    x = torch.stack([damped(acquisition) for acquisition in acquisitions])
    numbers: list[Tensor] = []
    pooled: list[Tensor] = []
    for level, s in enumerate(LEVELS):
        with _recording(prior) as seen:
            guess = _denoised(denoise, x, s, level, seed, bf16)
        if level:
            pooled.append(torch.cat(seen, 1))
        after = _consistent(acquisitions, guess, s)
        numbers.append(_numbers(acquisitions, x, guess, after))
        x = after
    numbers.append(_held_out(acquisitions, x, denoise, seed, bf16))
    return torch.cat(numbers, 1), torch.cat(pooled, 1)


def network_width(prior: Any) -> int:
    """How many activations `prior_features` gives."""
    network = _unet(prior)
    widths = [blocks[-1].convolutions[1].out_channels for blocks in (*network.down, *network.up)]  # type: ignore
    return (len(LEVELS) - 1) * sum(widths)


def _denoised(denoise: Any, x: Tensor, s: float, step: int, seed: int, bf16: bool) -> Tensor:
    source = Randomness(seed, f"observation {step}", device=x.device, dtype=x.dtype)
    noise = source.normal(1, tuple(x.shape[1:]))
    with torch.autocast(x.device.type, torch.bfloat16) if bf16 else nullcontext():
        return denoise(x + s * noise, torch.tensor(s, dtype=x.dtype, device=x.device)).to(x.dtype)


def _consistent(acquisitions: Sequence[Acquisition], guess: Tensor, s: float) -> Tensor:
    precision = 1 / s**2 + 1 / DATA_SCALE**2
    rows = []
    for acquisition, row in zip(acquisitions, guess, strict=True):
        operator = acquisition.operator
        back = operator.adjoint(acquisition.y[None])
        rows.append(operator.normal_solve(back + precision * row[None], precision)[0])
    return torch.stack(rows)


def _numbers(acquisitions: Sequence[Acquisition], x: Tensor, guess: Tensor, after: Tensor) -> Tensor:
    gap = guess - x
    spectrum = torch.fft.fft2(torch.complex(gap[:, 0], gap[:, 1]), norm="ortho").abs().square()
    far = [torch.fft.fftfreq(size, device=x.device).abs() for size in x.shape[2:]]
    high = (far[0].unsqueeze(1) > 0.25) | (far[1] > 0.25)
    residuals = []
    for acquisition, row in zip(acquisitions, guess, strict=True):
        power = (acquisition.y - acquisition.operator(row[None])[0]).abs().square() / 2
        (first, end), _ = calibration(acquisition)
        places = acquisition.mask.nonzero()[:, 0]
        central = (places >= first) & (places < end)
        parts = [power[:, central], power[:, ~central]]
        residuals.append(torch.stack([part.mean() if part.numel() else torch.ones_like(power.mean()) for part in parts]))
    both = torch.stack(residuals)
    error, step = gap.square().mean((1, 2, 3)), (after - guess).square().mean((1, 2, 3))
    found = torch.stack([error, step, both[:, 0], both[:, 1], spectrum[:, high].mean(1)], 1)
    return torch.log(found.double() + 1e-6)


def _held_out(acquisitions: Sequence[Acquisition], whole: Tensor, denoise: Any, seed: int, bf16: bool) -> Tensor:
    """`HELD_OUT_FEATURES` (n, 3)."""
    parts, missing = [], []
    for acquisition in acquisitions:
        for start in (0, 1):
            part, lines = _without(acquisition, start)
            parts.append(part)
            missing.append(lines)
    x = torch.stack([damped(part) for part in parts])
    guess = x
    for level, s in enumerate(LEVELS):
        guess = _denoised(denoise, x, s, level, seed, bf16)
        x = _consistent(parts, guess, s)
    rows = []
    for number, acquisition in enumerate(acquisitions):
        lost, signal = [], []
        for half in (2 * number, 2 * number + 1):
            gap = acquisition.y - acquisition.operator(guess[half : half + 1])[0]
            lost.append(gap[:, missing[half]].abs().square().sum((0, 2)))
            signal.append(acquisition.y[:, missing[half]].abs().square().sum((0, 2)))
        error, size = torch.cat(lost), torch.cat(signal).clamp_min(1e-12)
        moved = (x[2 * number : 2 * number + 2] - whole[number]).square().mean()
        share = error.sum() / size.sum() if len(error) else torch.ones_like(moved)
        rows.append(torch.stack([share, (error / size).max() if len(error) else share, moved]))
    return torch.log(torch.stack(rows).double() + 1e-6)


def _without(acquisition: Acquisition, start: int) -> tuple[Acquisition, Tensor]:
    """The acquisition without every other line beside the calibration, and which measured lines (of its y) these are."""
    (first, end), _ = calibration(acquisition)
    places = acquisition.mask.nonzero()[:, 0]
    beside = ((places < first) | (places >= end)).nonzero()[:, 0][start::2]
    mask = acquisition.mask.clone()
    mask[places[beside]] = False
    keep = torch.ones(len(places), dtype=torch.bool, device=places.device)
    keep[beside] = False
    operator = acquisition.operator
    smaller = Sense(acquisition.maps, mask, operator.variance)
    return replace(acquisition, mask=mask, operator=smaller, y=acquisition.y[:, keep]), beside


@contextmanager
def _recording(prior: Any) -> Any:
    """The means over pixels of the last block of each level, in the order of evaluation."""
    network = _unet(prior)
    seen: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Tensor) -> None:
        seen.append(output.double().mean((2, 3)))

    handles = [blocks[-1].register_forward_hook(keep) for blocks in (*network.down, *network.up)]  # type: ignore
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _unet(prior: Any) -> UNet:
    found = [module for module in prior.modules() if isinstance(module, UNet)] if isinstance(prior, nn.Module) else []
    if not found:
        raise UserError(f"the prior is a {type(prior).__name__} without a U-Net: its activations are needed (see image_flow)")
    return found[0]


def _fitting(acquisitions: Sequence[Acquisition], prior: Any) -> None:
    shape = tuple(getattr(prior, "event_shape", ()))
    for acquisition in acquisitions:
        if shape != (2, *acquisition.size):
            text = f"{acquisition.label}: the image has {acquisition.size} points, the prior {shape[1:]}"
            raise UserError(f"{text}: crop the scan (prepare --size), or use a prior of its size")
