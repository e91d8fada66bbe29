"""How far features are from those of a set, given what they may depend on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.recorded import Recorded

__all__ = ["FeatureDistance"]

_PER_DIRECTION = 3  # rows for each direction whose variance is believed
_FAR = 1e6


class FeatureDistance(nn.Module, Recorded):
    r"""log D of features f (n, F) given covariates c (n, C): a Mahalanobis distance in a probabilistic principal subspace,

        z = (f - B (1, c)) / s,    D^2 = (sum_k (q_k' z)^2 / l_k + |z - Q Q' z|^2 / r) / F,

    with B by least squares, s the deviations of what it leaves, Q and l the leading eigenvectors and eigenvalues of the
    correlations of z, as many as there are three rows for, and r the mean of the other eigenvalues. Covariates are cut to the
    range they were seen in.

    Arguments:
        features, covariates: F, C.

    Source: Probabilistic Principal Component Analysis, Tipping and Bishop 1999.

    >>> rows = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> distance = FeatureDistance(2, 0).fit(rows, rows[:, :0])
    >>> bool(distance(rows + 9, rows[:, :0]).min() > distance(rows, rows[:, :0]).max())
    True
    """

    mean: Tensor
    coefficients: Tensor
    scale: Tensor
    basis: Tensor
    values: Tensor
    rest: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, features: int, covariates: int) -> None:
        super().__init__()
        kept = min(features, 64)
        shapes = {"mean": (features,), "coefficients": (covariates, features), "scale": (features,), "basis": (features, kept),
                  "values": (kept,), "rest": (), "lowest": (covariates,), "highest": (covariates,)}  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def fit(self, features: Tensor, covariates: Tensor) -> FeatureDistance:
        """From rows (n, F) and (n, C). Raises `UserError` for too few, or values that are not finite."""
        n, width = features.shape
        least = 4 * (covariates.shape[1] + 2)
        if n < least or not bool(features.isfinite().all()):
            raise UserError(f"{n} rows of {width} features, or values not finite: give {least} good rows or more")
        features, covariates = features.double(), covariates.double()
        self.lowest.copy_(covariates.amin(0))
        self.highest.copy_(covariates.amax(0))
        centred = covariates - covariates.mean(0)
        # a covariate that never varied has no slope
        slope = torch.linalg.pinv(centred, rtol=1e-6) @ (features - features.mean(0))
        self.coefficients.copy_(slope)
        self.mean.copy_(features.mean(0) - covariates.mean(0) @ slope)
        left = features - self.mean - covariates @ slope
        scale = left.square().sum(0).div(n - 1 - covariates.shape[1]).sqrt()
        self.scale.copy_(scale.clamp_min(1e-6 * scale.max().clamp_min(1e-12)))
        z = left / self.scale
        _, singular, directions = torch.linalg.svd(z, full_matrices=False)
        variances = singular.square() / (n - 1 - covariates.shape[1])
        kept = max(1, min(self.basis.shape[1], n // _PER_DIRECTION, width))
        total = float(z.square().sum()) / (n - 1 - covariates.shape[1])
        rest = max((total - float(variances[:kept].sum())) / max(width - kept, 1), 1e-3)
        self.basis.zero_()
        self.values.fill_(1.0)
        self.basis[:, :kept] = directions[:kept].T
        self.values[:kept] = variances[:kept].clamp_min(rest if kept < width else 1e-4)
        self.rest.fill_(rest)
        return self

    def deviations(self, features: Tensor, covariates: Tensor) -> Tensor:
        """z (n, F)."""
        given = torch.minimum(torch.maximum(covariates, self.lowest), self.highest)
        return ((features - self.mean - given @ self.coefficients) / self.scale).clamp(-_FAR, _FAR)

    def forward(self, features: Tensor, covariates: Tensor) -> Tensor:
        z = self.deviations(features, covariates)
        inside = z @ self.basis
        outside = (z.square().sum(1) - inside.square().sum(1)).clamp_min(0)
        square = (inside.square() / self.values).sum(1) + outside / self.rest
        return 0.5 * torch.log(square / z.shape[1] + 1e-12)
