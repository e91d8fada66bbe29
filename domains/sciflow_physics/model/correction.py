"""A fitted correction of simulation to data, and how it is applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import Tensor, nn

from sciflow import noise
from sciflow.recorded import Recorded
from sciflow_physics.data.roles import Roles
from sciflow_physics.model.sample import Sample, fold_of, sample_of
from sciflow_physics.model.transport import Transport, columns_of
from sciflow_physics.model.weights import ratio_of

__all__ = ["Correction", "fit_correction"]

# every call of a network sees exactly this many rows, padded at the end: then a row's result does not depend on its
# neighbours down to the last bit, which matrix products of varying shape do not promise
_ROWS = 2048


class Correction(nn.Module, Recorded):
    r"""Corrects the features of simulated rows so that they are distributed like data, given their conditions.

    There are K folds; an event belongs to fold hash(event) mod K, and model k is trained on events of the other folds.
    So every event, whether it was in the training files or not, is corrected by a model that has not seen it, as long as
    it keeps its number, or, in files without event numbers, the values of its features and conditions.
    With K = 1 there is one model, trained on everything: for events that are independent of the training.

    `<feature>_corr` is the nominal result. `<feature>_corr_up` and `_down` bound its 68 % band: with z the standardised
    feature, z +- t_M s, where s is the root mean square distance of M bootstrap members from the nominal one and t_M
    the 84.1 % point of Student's t with M degrees of freedom. A member is trained with Poisson(1) weights per event,
    both samples and both weight estimates included, and another order of batches, starting from the nominal weights: s has
    the statistics and part of the training noise, not that of the initial weights, of the method, or of the simulation
    outside the training support. That it covers is tested on known truth (`sciflow_physics.truth.coverage`).
    With M = 0 there is no band: up and down equal the nominal value.

    `out_of_support` is True where the category is unknown, a condition lies outside the range that both samples
    cover, a feature outside that of the simulation, or where the event is less likely than every simulated training
    event. Values there are extrapolated, finite, and not to be trusted. `weight_kinematic` is the density ratio of
    the conditions' spectra; the conditions themselves are never altered.

    Built by `fit_correction`; arguments are what a saved correction is rebuilt from.
    """

    def __init__(
        self,
        roles: Mapping[str, Any],
        *,
        categories: Sequence[str] = (),
        method: str = "switch",
        folds: int = 2,
        members: int = 4,
        seed: int = 0,
        flow: Mapping[str, Any] | None = None,
        normal_scores: bool = False,
        trees: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.roles = Roles.from_dict(roles)
        self.categories, self.method, self.members, self.seed = list(categories), method, members, seed
        self.folds = nn.ModuleList(
            Transport(
                columns_of(self.roles, self.roles.feature_names),
                columns_of(self.roles, self.roles.condition_names),
                len(self.categories),
                maskable=any(role.present is not None for role in self.roles.features.values()),
                method=method,
                members=members,
                flow=flow or {"hidden": (64, 64)},
                normal_scores=normal_scores,
                harmonics=[role.harmonics for role in self.roles.conditions.values()],
                scales=[role.scale.text if role.scale else "" for role in self.roles.features.values()],
                symmetric=[role.symmetric for role in self.roles.conditions.values()],
                trees=(0, 1, 0) if trees is None else trees[fold],
            )
            for fold in range(folds)
        )
        self.summary: dict[str, Any] = {}  # what the fit reports: weights, losses, seconds

    def extra_repr(self) -> str:
        names = ", ".join(self.roles.feature_names)
        return f"{self.method}, {len(self.folds)} folds x (1 + {self.members} members), features {names}"

    @property
    def band_factor(self) -> float:
        """t_M: what multiplies the members' root mean square distance to make a 68 % band."""
        return float(stats.t.ppf(stats.norm.cdf(1.0), self.members)) if self.members else 0.0

    @torch.no_grad()
    def apply(self, sim: xr.Dataset) -> xr.Dataset:  # type: ignore[override]
        """The dataset with `<feature>_corr`, `_corr_up`, `_corr_down`, `out_of_support` and `weight_kinematic` added.

        Everything that was there stays bit for bit. Results depend on the row and its `event` and `id` alone, not on
        order or chunking. Raises `UserError` for missing columns or non-finite values.
        """
        sample = sample_of(sim, self.roles, self.categories, name="the simulation")
        fold = fold_of(sample.event, len(self.folds), self.seed)
        shape = sample.x.shape
        nominal, up, down = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        outside, ratio = np.zeros(shape[0], bool), np.ones(shape[0])
        for number, model in enumerate(self.folds):
            rows = np.flatnonzero(fold == number)
            assert isinstance(model, Transport)
            for start in range(0, len(rows), _ROWS):
                part = rows[start : start + _ROWS]
                nominal[part], up[part], down[part], outside[part] = self._block(model, sample.take(part))
            ratio[rows] = ratio_of(model.ratio(sample.take(rows).covariates(len(self.categories), features=False)))
        added: dict[str, Any] = {}
        for j, name in enumerate(self.roles.feature_names):
            for suffix, values in (("", nominal), ("_up", up), ("_down", down)):
                added[f"{name}_corr{suffix}"] = ("row", values[:, j].copy(), dict(sim[name].attrs))
        added["out_of_support"] = ("row", outside)
        added["weight_kinematic"] = ("row", ratio, {"units": "1"})
        return sim.assign(added)

    def inputs(self, sample: Sample) -> dict[str, Tensor | None]:
        """The tensors that `Transport.forward` takes, with the random numbers of each row."""
        identity = torch.from_numpy(np.ascontiguousarray(sample.id))
        device = next(self.buffers()).device
        size = sample.x.shape[1]
        tensors: dict[str, Tensor | None] = {
            "x": torch.from_numpy(sample.x).to(device),
            "conditions": torch.from_numpy(sample.conditions).to(device),
            "category": torch.from_numpy(sample.category).to(device),
            "uniform": noise.uniform(self.seed, "dequantise", identity, size).to(device),
            "noise": torch.zeros(sample.x.shape, dtype=torch.float64, device=device),
            "mask": torch.from_numpy(sample.mask).to(device),
        }
        if self.method == "conditional":
            tensors["noise"] = noise.normal(self.seed, "conditional", identity, size).to(device)
        return tensors

    def _block(self, model: Transport, sample: Sample) -> tuple[np.ndarray, ...]:
        rows = len(sample.event)
        padded = sample.take(np.minimum(np.arange(_ROWS), rows - 1)) if rows < _ROWS else sample
        tensors = self.inputs(padded)
        mask = tensors["mask"]
        nominal, spread, outside = model.corrected(**tensors)  # type: ignore[arg-type]
        results = []
        for shift in (0.0, self.band_factor, -self.band_factor):
            y = model.physical(nominal + shift * spread, tensors["conditions"], mask)  # type: ignore[arg-type]
            results.append(y[:rows].cpu().numpy())
        return *results, outside[:rows].cpu().numpy()


def fit_correction(sim: xr.Dataset, data: xr.Dataset, roles: Roles, **options: Any) -> Correction:
    """Learn a correction; see `sciflow_physics.model.learning.fit_correction`, which this calls."""
    from sciflow_physics.model.learning import fit_correction as fit

    return fit(sim, data, roles, **options)
