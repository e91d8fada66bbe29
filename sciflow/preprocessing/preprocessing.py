"""Preprocessing as part of the model: curves, point masses, masks and a common standardisation, with log-determinant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow import noise
from sciflow.errors import UserError
from sciflow.preprocessing.column import Column
from sciflow.preprocessing.curves import Curves
from sciflow.preprocessing.fitting import check, fit_curve
from sciflow.preprocessing.statistics import location_and_scale
from sciflow.recorded import Recorded

__all__ = ["Preprocessing"]


class Preprocessing(nn.Module, Recorded):
    r"""From the physical units of D columns to a roughly standard normal vector, and back.

        z_j = (u_j(y_j) - mean_j) / scale_j,    log |det dz/dy| = sum_j log u_j'(y_j) - log scale_j

    `u_j` is the curve of the column (see `Column`), continued straight beyond the range of the fit. A value with
    positive probability has no density; `dequantise` spreads it over a band below the continuum, separated by a gap,
    and `quantise` maps the band back to the exact value. A flow over y then has a density, that of the *dequantised*
    variable, and learns the probability of the point mass as the mass of the band.

    Absent entries (mask False) are 0 in model space and in physical units and have no part in the log-determinant.
    Everything is computed in float64, whatever the dtype of the flow behind it. Before `fit`, or weights of a fitted one
    are loaded, every use is refused with a `UserError`.

    Arguments:
        columns: what is known of each column; an integer D stands for D columns without a curve.
        robust: standardise with median and central 68 % width instead of mean and standard deviation.
        noise: how a point mass is spread: "triangular" (densest beside the continuum) or "uniform".

    >>> preprocessing = Preprocessing([Column("isolation", transform="log", point_mass=0.0)])
    >>> x = torch.tensor([[0.0], [0.0], [1.5], [0.4], [20.0]], dtype=torch.float64)
    >>> y = preprocessing.fit(x).dequantise(x, index=torch.arange(5))
    >>> bool((y[:2] < 0).all()), bool((preprocessing.quantise(y) == x).all())
    (True, True)
    >>> z, ladj = preprocessing(y)
    >>> z.shape, ladj.shape
    (torch.Size([5, 1]), torch.Size([5]))
    """

    fitted: Tensor
    mean: Tensor
    scale: Tensor
    mass: Tensor
    edge: Tensor
    least: Tensor
    gap: Tensor
    width: Tensor
    lower: Tensor
    upper: Tensor

    def __init__(self, columns: int | Sequence[Column], *, robust: bool = False, noise: str = "triangular") -> None:
        super().__init__()
        if noise not in ("triangular", "uniform"):
            raise UserError(f"noise {noise!r} is not one of triangular, uniform")
        self.columns = [Column(str(j)) for j in range(columns)] if isinstance(columns, int) else list(columns)
        self.robust, self.noise = robust, noise
        size = len(self.columns)
        self.curves = Curves([column.transform for column in self.columns])
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self._ready = False  # what `fitted` was when last looked at: to look means to wait for the device
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(size, dtype=torch.float64))
        # band of a point mass, in physical units: [edge - gap - width, edge - gap]; nan where there is none
        masses = [float("nan") if column.point_mass is None else column.point_mass for column in self.columns]
        self.register_buffer("mass", torch.tensor(masses, dtype=torch.float64), persistent=False)
        self.register_buffer("edge", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("least", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("gap", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("width", torch.ones(size, dtype=torch.float64))
        infinity = float("inf")
        lower = [-infinity if c.transform == "none" or c.lower is None else c.lower for c in self.columns]
        upper = [infinity if c.transform not in ("logit", "bounded") or c.upper is None else c.upper for c in self.columns]
        self.register_buffer("lower", torch.tensor(lower, dtype=torch.float64), persistent=False)
        self.register_buffer("upper", torch.tensor(upper, dtype=torch.float64), persistent=False)

    def extra_repr(self) -> str:
        return ", ".join(repr(column) for column in self.columns)

    @property
    def features(self) -> int:
        """Number of columns D."""
        return len(self.columns)

    @property
    def has_point_masses(self) -> bool:
        """Whether some column has a value with positive probability."""
        return any(column.point_mass is not None for column in self.columns)

    def _check_fitted(self) -> None:
        if self._ready or self.fitted.is_meta:  # without values there is nothing that could be wrong
            return
        self._ready = bool(self.fitted)  # it may have been filled in place
        if not self._ready:
            names = ", ".join(repr(column.name) for column in self.columns[:3]) + ", ..." * (len(self.columns) > 3)
            raise UserError(f"the preprocessing of {names} is not fitted: call fit(x), or load the weights of a fitted one")

    def _load_from_state_dict(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(*arguments)
        self._ready = not self.fitted.is_meta and bool(self.fitted)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # Module.float() and .half() would round the units away: only the device may change
        def only_device(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype or not tensor.is_floating_point() else tensor.to(moved.device)

        return super()._apply(only_device, recurse)

    @torch.no_grad()
    def fit(self, x: Tensor, weight: Tensor | None = None, mask: Tensor | None = None) -> Preprocessing:
        """Fit curves, bands and standardisation to rows x (N, D), weights (N,) >= 0, mask (N, D), True where present.

        Raises `UserError`, naming the column, for non-finite values, for values outside the range of the transform, and
        for a column that is absent everywhere or does not vary.
        """
        x = self._table(x).double()
        weight = torch.ones(len(x), dtype=torch.float64, device=x.device) if weight is None else weight.double()
        present = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        check(self.columns, x, weight, present)
        self._ready = False
        self.fitted.fill_(False)  # until the end: what is refused halfway is of no use
        for j, column in enumerate(self.columns):
            fitted = fit_curve(column, x[present[:, j], j], weight[present[:, j]], uniform=self.noise == "uniform")
            self.curves.origin[j], self.curves.span[j] = fitted.origin, fitted.span
            self.curves.floor[j], self.curves.ceiling[j] = fitted.floor, fitted.ceiling
            self.edge[j], self.gap[j], self.width[j], self.least[j] = fitted.floor, fitted.gap, fitted.width, fitted.least
        u, _ = self.curves(self._dequantised(x, torch.arange(len(x), device=x.device), 0, mask))
        for j, column in enumerate(self.columns):
            rows = present[:, j] & (weight > 0)
            mean, scale = location_and_scale(u[rows, j], weight[rows], robust=self.robust)
            if robust_failed := (self.robust and not scale > 0):
                mean, scale = location_and_scale(u[rows, j], weight[rows], robust=not robust_failed)
            if not scale > 1e-12 * (1 + mean.abs()):
                raise UserError(f"column {column.name!r} has zero variance: it is {float(x[rows, j][0]):g} everywhere; drop it")
            self.mean[j], self.scale[j] = mean, scale
        self.fitted.fill_(True)
        self._ready = True
        return self

    def dequantise(self, x: Tensor, index: Tensor, seed: int = 0, mask: Tensor | None = None) -> Tensor:
        """y (N, D) in float64: point masses moved into their bands, everything else as it is.

        The place in the band depends on (seed, index, column) alone, index (N,) being the identity of the row, so that
        neither order nor chunking matters. Absent entries become 0.
        """
        self._check_fitted()
        return self._dequantised(self._table(x).double(), index, seed, mask)

    def _dequantised(self, x: Tensor, index: Tensor, seed: int, mask: Tensor | None) -> Tensor:
        if index.shape != x.shape[:1]:
            raise ValueError(f"index has shape {tuple(index.shape)}, x {tuple(x.shape)}: expected one integer per row")
        uniform = torch.full_like(x, 0.5)
        if self.has_point_masses:
            uniform = noise.uniform(seed, "dequantise", index, self.features, device=x.device)
        return self._spread(x, uniform, mask)

    def spread(self, x: Tensor, uniform: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `dequantise`, with the random numbers (N, D) given: an exported graph takes them as an input."""
        self._check_fitted()
        return self._spread(x, uniform, mask)

    def _spread(self, x: Tensor, uniform: Tensor, mask: Tensor | None) -> Tensor:
        depth = uniform if self.noise == "uniform" else 1 - torch.sqrt(uniform)
        # a value below the continuum seen in the fit must not fall into the band of the point mass
        continuum = torch.where(self.mass == self.mass, torch.maximum(x, self.edge), x)
        y = torch.where(x == self.mass, self.edge - self.gap - self.width * depth, continuum)
        return y if mask is None else torch.where(mask, y, 0.0)

    def quantise(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (N, D): what lies below the middle of the gap becomes the exact value, the rest at least the least value of the
        continuum seen in the fit; bounds are kept. Not decreasing in y, where the point mass is the lowest value."""
        self._check_fitted()
        has_mass = self.mass == self.mass
        # nothing comes out between the point mass and the least value that was seen: the map stays increasing
        x = torch.minimum(torch.maximum(y, torch.where(has_mass, self.least, self.lower)), self.upper)
        x = torch.where(has_mass & (y < self.edge - self.gap / 2), self.mass, x)
        return x if mask is None else torch.where(mask, x, 0.0)

    def forward(self, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (N, D) and log |det dz/dy| (N,), float64."""
        self._check_fitted()
        u, ladj = self.curves(y.double())
        z, ladj = (u - self.mean) / self.scale, ladj - torch.log(self.scale)
        if mask is not None:
            z, ladj = torch.where(mask, z, 0.0), torch.where(mask, ladj, 0.0)
        return z, ladj.sum(-1)

    def inverse(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y (N, D) and log |det dy/dz| (N,), float64."""
        self._check_fitted()
        y, ladj = self.curves.inverse(z.double() * self.scale + self.mean)
        ladj = ladj + torch.log(self.scale)
        if mask is not None:
            y, ladj = torch.where(mask, y, 0.0), torch.where(mask, ladj, 0.0)
        return y, ladj.sum(-1)

    def _table(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.features:
            names = ", ".join(column.name for column in self.columns)
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (N, {self.features}) with the columns {names}")
        return x
