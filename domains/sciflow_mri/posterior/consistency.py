"""Whether the lines of a scan belong together: each is predicted from all others, by the coils and the spectrum of images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow_mri.physics.columns import fourier_matrix
from sciflow_mri.posterior.acquisition import Acquisition

__all__ = ["CONSISTENCY_FEATURES", "LineModel", "consistency_features"]

_SCALE = 0.36  # standard deviation of real and imaginary part of images of the prior
CONSISTENCY_FEATURES = (
    "surprise of calibration lines", "surprise of other lines", "most surprising line", "least surprising line",
    "unpredicted share of other lines", "worst unpredicted share", "most surprising entry", "evidence",
    "lines one further up", "lines one further down",
)  # fmt: skip


class LineModel:
    r"""Gaussian prediction of each measured line from the others, column by column of the image (the readout is whole).

    Image columns are N(0, F' diag(s) F) with s(k) proportional to (1 + |k|)^-2, total variance 2 d^2; whitened data of a column
    are y = A x + e. With K = A C A' + 2, a = K^-1 y and P_l = [K^-1]_ll, the (coil, coil) block of line l,

        y_l - E[y_l | others] = P_l^-1 a_l,   surprise_l = a_l' P_l^-1 a_l / coils,

    whose mean is 1 if coils, mask, noise and spectrum are right.

    Attributes: `surprise` (line, column); `error`, `data` (line, coil, column); `evidence`, -(log det K + y' K^-1 y) per datum.

    Raises `UserError` for a mask of points.

    Source: Gaussian Processes for Machine Learning, Rasmussen and Williams 2006, section 5.4.2.
    """

    def __init__(self, acquisition: Acquisition, places: Tensor | None = None) -> None:
        operator = acquisition.operator
        if not operator.by_lines or operator.variance is None:
            raise UserError(f"{acquisition.label}: lines are predicted from lines only; this mask is one of points")
        maps = acquisition.maps.to(torch.complex64)
        coils, height, width = maps.shape
        measured = acquisition.mask.nonzero()[:, 0]
        places = measured if places is None else places
        transform = fourier_matrix(height, torch.complex64, maps.device)
        weight = operator.variance[:, measured].rsqrt().T.to(torch.float32)  # (line, coil)
        # (width, line, coil, k): row of A for the image's spectrum along y
        spectra = (maps.permute(2, 0, 1).unsqueeze(2) * transform.conj()).reshape(-1, height)  # (width coil k, y)
        rows = (spectra @ transform[places].T).reshape(width, coils, height, len(places)).permute(0, 3, 1, 2)
        rows = (rows * weight.unsqueeze(2)).reshape(width, -1, height)
        k = (torch.arange(height, device=maps.device) - height // 2).abs()
        power = (1.0 + k) ** -2.0
        power = 2 * _SCALE**2 * power / power.mean()
        turned = torch.fft.ifftshift(acquisition.y, dim=-1)
        data = torch.fft.fftshift(torch.fft.ifft(turned, norm="ortho"), dim=-1).permute(2, 1, 0)  # (width, line, coil)
        # K^-1 = (1 - B G B') / 2 with B the rows and G = (2 / s + B'B)^-1, of the size of a column
        flat = data.reshape(width, -1, 1).to(rows.dtype)
        normal = rows.mH @ rows + torch.diag(2 / power)
        factor = torch.linalg.cholesky(normal)
        back = rows.mH @ flat
        solved = (flat - rows @ torch.cholesky_solve(back, factor)) / 2
        fit = (flat.conj() * solved).real.sum()
        determinant = 2 * torch.diagonal(factor, dim1=1, dim2=2).real.log().sum() + width * (power / 2).log().sum()
        self.evidence = -(determinant.double() + fit) / flat.numel() - math.log(2)
        half = torch.linalg.solve_triangular(factor, rows.mH, upper=False)  # (width, k, line coil)
        half = half.reshape(width, height, len(places), coils).permute(0, 2, 3, 1)
        blocks = (torch.eye(coils, device=maps.device) - (half @ half.mH).conj()) / 2
        error = torch.linalg.solve(blocks, solved.reshape(width, len(places), coils, 1))[..., 0]
        self.surprise = ((solved.reshape_as(data).conj() * error).real.sum(2) / coils).T.double()
        self.error, self.data = error.permute(1, 2, 0), data.permute(1, 2, 0)


def consistency_features(acquisition: Acquisition, calibration: tuple[int, int]) -> Tensor:
    """The numbers `CONSISTENCY_FEATURES` (F,), float64: logarithms, but for the last three, which are evidences per datum.

    The last two are evidence minus that with all lines beside the calibration claimed one place further: positive for a
    right mask. Raises `UserError` for a mask of points.
    """
    model = LineModel(acquisition)
    places = acquisition.mask.nonzero()[:, 0]
    central = (places >= calibration[0]) & (places < calibration[1])
    others = ~central if bool((~central).any()) else central
    lines = model.surprise.mean(1)
    lost = model.error.abs().square().sum((1, 2)).double()
    signal = model.data.abs().square().sum((1, 2)).double().clamp_min(1e-12)
    spectrum = torch.fft.fft(model.error, dim=-1, norm="ortho").abs().square()
    loud = (spectrum.amax((1, 2)) / spectrum.mean((1, 2))).max()
    logs = [
        lines[central].mean() if bool(central.any()) else lines.mean(), lines[others].mean(), lines.max(), lines.min(),
        lost[others].sum() / signal[others].sum(), (lost / signal)[others].max(), loud,
    ]  # fmt: skip
    height = len(acquisition.mask)
    steps = [torch.where(central, places, (places + step) % height) for step in (-1, 1)]
    shifted = [model.evidence - LineModel(acquisition, where).evidence for where in steps]
    return torch.stack([*(torch.log(value.double() + 1e-6) for value in logs), model.evidence, *shifted])
