"""One fold of a correction: its preprocessing, its flows, and the region it was trained in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.flows import NeuralSplineFlow
from sciflow.preprocessing import Column, Preprocessing
from sciflow.recorded import Recorded
from sciflow_physics.data.expressions import Expression
from sciflow_physics.model.marginals import Marginals
from sciflow_physics.model.trees import TreeEnsemble

__all__ = ["Transport", "columns_of"]

_BOX = 30.0  # standardised features are kept in it: splines are the identity beyond 5


def columns_of(roles: Any, names: Sequence[str]) -> list[Column]:
    """Columns for the preprocessing from the roles of variables."""
    found = [roles.variables[name] for name in names]
    return [
        Column(role.name, transform=role.transform, lower=role.lower, upper=role.upper, point_mass=role.point_mass)
        for role in found
    ]


class Transport(nn.Module, Recorded):
    r"""Maps simulated rows to data-like ones, member by member; member 0 is the nominal one.

    "switch": one flow p(z | c, s) with s = -1 for simulation and +1 for data,

        z' = T^{-1}(T(z; c, -1); c, +1),

    which at fixed condition c morphs the simulated distribution into that of the data and leaves c alone. With
    `normal_scores` T acts on the normal scores of sample and category (`Marginals`): it is left with dependences.
    "conditional": a flow p(z' | z, c); z' = T^{-1}(noise; z, c) with the noise of the row.

    Arguments:
        features, conditions: columns of either preprocessing.
        categories: number of categories; more than one enter the condition as indicators.
        maskable: whether some features are absent for some rows.
        method: "switch" or "conditional".
        members: number of bootstrap members, beside the nominal one.
        flow: arguments of `sciflow.flows.NeuralSplineFlow`: transforms, bins, hidden, kind.
        normal_scores: whether marginals are settled before the flow ("switch").
        symmetric: for each condition whether only its absolute value matters, such as eta in a symmetric detector.
        scales: for each feature an expression of the conditions, or "": the feature times it is what is mapped.
        harmonics: for each condition the number n of cosines cos(k pi (z + 3) / 6) / k, k = 1 ... n, that networks see
            beside it: for structure too fine for a small network, such as the gaps between the modules of a detector.
        trees: sizes (trees, nodes, depth) of the classifier that matches the conditions' spectrum.
    """

    lower: Tensor
    upper: Tensor
    least: Tensor
    mirrored: Tensor

    def __init__(
        self,
        features: Sequence[Column],
        conditions: Sequence[Column],
        categories: int,
        *,
        maskable: bool,
        method: str,
        members: int,
        flow: Mapping[str, Any],
        normal_scores: bool = False,
        symmetric: Sequence[bool] = (),
        scales: Sequence[str] = (),
        harmonics: Sequence[int] = (),
        trees: Sequence[int] = (0, 1, 0),
    ) -> None:
        super().__init__()
        self.features, self.conditions = Preprocessing(features), Preprocessing(conditions)
        self.categories, self.maskable, self.method = categories, maskable, method
        size = len(features)
        self.harmonics = [*harmonics] or [0] * len(conditions)
        context = len(conditions) + sum(self.harmonics) + (categories if categories > 1 else 0)
        context += 1 if method == "switch" else size * (2 if maskable else 1)
        settings = {**flow, "hidden": tuple(flow["hidden"])}
        self.flows = nn.ModuleList(NeuralSplineFlow(size, context, maskable=maskable, **settings) for _ in range(1 + members))
        # one per flow: a bootstrap member has marginals of its own
        self.marginals = nn.ModuleList(
            Marginals(size, 2 * max(categories, 1)) for _ in range(1 + members if normal_scores else 0)
        )
        self.scales = [Expression(text) if text else None for text in scales or [""] * size]
        mirrored = torch.tensor([*symmetric] or [False] * len(conditions), dtype=torch.bool)
        self.register_buffer("mirrored", mirrored, persistent=False)
        self.ratio = TreeEnsemble(*trees)
        # the box of the training conditions and features, standardised, and the least likely simulated training event
        self.register_buffer("lower", torch.full((size + len(conditions),), -_BOX, dtype=torch.float64))
        self.register_buffer("upper", torch.full((size + len(conditions),), _BOX, dtype=torch.float64))
        self.register_buffer("least", torch.tensor(-1e300, dtype=torch.float64))

    def factors(self, conditions: Tensor) -> Tensor:
        """The positive factors (N, D) that make the mapped quantities out of the features, from the conditions (N, C)."""
        columns = {column.name: conditions[:, j] for j, column in enumerate(self.conditions.columns)}
        one = torch.ones_like(conditions[:, :1]).squeeze(1) if columns else conditions.new_ones(())
        return torch.stack([one if scale is None else scale.tensor(columns) for scale in self.scales], -1)

    def fold_signs(self, conditions: Tensor) -> Tensor:
        """The conditions (N, C) with those that the correction is symmetric in replaced by their absolute value."""
        return torch.where(self.mirrored, conditions.abs(), conditions)

    def context(self, conditions: Tensor, category: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised conditions, kept inside the training box, with the indicators; and True where they were inside."""
        z, _ = self.conditions(self.fold_signs(conditions))
        size = self.features.features
        kept = torch.minimum(torch.maximum(z, self.lower[size:]), self.upper[size:])
        inside = (kept == z).all(1)
        waves = [_cosines(kept[:, j : j + 1], count) for j, count in enumerate(self.harmonics) if count]
        kept = torch.cat([kept, *waves], dim=1)
        if self.categories > 1:
            codes = torch.arange(self.categories, device=category.device)
            kept = torch.cat([kept, 2.0 * (category[:, None] == codes) - 1], dim=1)
        return kept, inside & (category >= 0)

    def standardise(self, x: Tensor, uniform: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Standardised dequantised quantities (N, D) from scaled features, and True where all were inside the training box."""
        y = self.features.spread(x, uniform, mask)
        z, _ = self.features(y, mask)
        size = self.features.features
        inside = (z >= self.lower[:size]) & (z <= self.upper[:size])
        inside = inside if mask is None else inside | ~mask
        return z.clamp(-_BOX, _BOX), inside.all(1)

    def groups(self, category: Tensor) -> tuple[Tensor, Tensor]:
        """The groups of `Marginals` that simulated and data rows of these categories belong to, (N,) each."""
        known = category.clamp_min(0)
        return known, known + max(self.categories, 1)

    @property
    def bands(self) -> Tensor:
        """The ends of the band of each point mass, standardised (D, 2); nan without one."""
        features = self.features
        top = features.edge - features.gap
        ends = torch.stack([features.curves((top - width)[None])[0][0] for width in (features.width, 0.0)], 1)
        ends = (ends - features.mean[:, None]) / features.scale[:, None]
        return torch.where((features.mass == features.mass)[:, None], ends, float("nan"))

    def map(
        self, member: int, z: Tensor, context: Tensor, category: Tensor, noise: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Corrected standardised features (N, D) and the log-density of the input (N,) (0 for "conditional")."""
        flow: Any = self.flows[member]
        mask = mask if self.maskable else None
        dtype = next(flow.parameters()).dtype
        before, z, context = z, z.to(dtype), context.to(dtype)
        if self.method == "switch":
            if len(self.marginals):
                z = self.marginals[member](before, self.groups(category)[0], mask).to(dtype)
            switch = torch.ones_like(z[:, :1])  # no len(): exported graphs keep the batch open
            latent, ladj = flow.to_latent(z, torch.cat([context, -switch], 1), mask)
            density = flow.base.log_prob(latent, None, mask) + ladj
            mapped, _ = flow.to_data(latent, torch.cat([context, switch], 1), mask)
            if len(self.marginals):
                mapped = self.marginals[member].inverse(mapped, self.groups(category)[1], mask)  # type: ignore[operator]
            return mapped, density
        given = torch.cat([context, z], 1) if mask is None else torch.cat([context, z, mask.to(dtype)], 1)
        mapped, _ = flow.to_data(noise.to(dtype), given, mask)
        return mapped, torch.zeros_like(mapped[:, 0])

    def forward(
        self, x: Tensor, conditions: Tensor, category: Tensor, uniform: Tensor, noise: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From physical units to physical units: nominal corrected features (N, D), spread of the members in
        standardised units (N, D), and True where the row lies outside the training support (N,).

        `uniform` (N, D) dequantises, `noise` (N, D) is standard normal ("conditional" only). Plain tensor operations:
        this is what is exported.
        """
        nominal, spread, outside = self.corrected(x, conditions, category, uniform, noise, mask)
        return self.physical(nominal, conditions, mask), spread, outside

    def physical(self, z: Tensor, conditions: Tensor, mask: Tensor | None) -> Tensor:
        """Features in physical units (N, D) from standardised ones."""
        y, _ = self.features.inverse(z, mask)
        return self.features.quantise(y, mask) / self.factors(conditions)

    def corrected(
        self, x: Tensor, conditions: Tensor, category: Tensor, uniform: Tensor, noise: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, with the nominal features still standardised."""
        z, inside = self.standardise(x * self.factors(conditions), uniform, mask)
        context, known = self.context(conditions, category)
        nominal, density = self.map(0, z, context, category, noise, mask)
        nominal = nominal.double().clamp(-_BOX, _BOX)
        square = torch.zeros_like(nominal)
        for member in range(1, len(self.flows)):
            mapped, _ = self.map(member, z, context, category, noise, mask)
            square = square + (mapped.double().clamp(-_BOX, _BOX) - nominal) ** 2
        spread = torch.sqrt(square / max(len(self.flows) - 1, 1))
        return nominal, spread, ~(inside & known & (density.double() >= self.least))


def _cosines(z: Tensor, count: int) -> Tensor:
    """cos(k pi (z + 3) / 6) / k for k = 1 ... count, (N, count) from a standardised condition (N, 1)."""
    k = torch.arange(1, count + 1, dtype=z.dtype, device=z.device)
    return torch.cos((z + 3.0) * (torch.pi / 6.0) * k) / k
