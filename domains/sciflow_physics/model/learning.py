"""How a correction is learned: folds, bootstrap members, weights, one training after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow.training import Batch, Objective
from sciflow_physics.data.roles import Roles
from sciflow_physics.model import Correction
from sciflow_physics.model.conditional import Identified, conditional_batch, identified
from sciflow_physics.model.fold_training import Training, initialise, learn_support, train
from sciflow_physics.model.redrawn import scores_of
from sciflow_physics.model.sample import Sample, categories_of, fold_of, poisson, sample_of
from sciflow_physics.model.transport import Transport
from sciflow_physics.model.trees import TreeEnsemble
from sciflow_physics.model.weights import WeightReport, matching_weights, positive_weights

__all__ = ["fit_correction"]

_log = logging.getLogger(__name__)


class Weighted(NamedTuple):
    """Positive weights of both samples with equal totals, and what they report."""

    sim: NDArray[np.float64]
    data: NDArray[np.float64]
    ratio: TreeEnsemble
    reports: dict[str, WeightReport]


def fit_correction(
    sim: xr.Dataset,
    data: xr.Dataset,
    roles: Roles,
    *,
    method: str = "switch",
    folds: int = 2,
    members: int = 4,
    seed: int = 0,
    epochs: int = 60,
    member_epochs: int | None = None,
    batch_size: int = 512,
    learning_rate: float = 2e-3,
    patience: int | None = None,
    weight_decay: float = 0.0,
    ema: float | None = 0.99,
    validation: float = 0.1,
    transforms: int = 4,
    bins: int = 8,
    hidden: Sequence[int] = (64, 64),
    kind: str = "coupling",
    normal_scores: bool | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    **constraints: Any,
) -> Correction:
    r"""Learn to correct simulation to data, folds x (1 + members) trainings in sequence.

    Each sample is given positive weights (`positive_weights`), the simulation the conditions' spectrum of the data
    (`matching_weights`), both the same total. The nominal flow is trained from scratch; a member starts from it and is
    trained for `member_epochs` with Poisson(1) weights per event, its own weight estimates and order of batches.

    Arguments:
        sim, data: rows as `sciflow_physics.data.read` gives them; `event` and `id` coordinates are needed.
        method: "switch" or "conditional", see `Transport`.
        folds: at least 2 for cross-fitting; 1 trains one model on everything.
        members: bootstrap members, 0 for no band, else at least 2.
        validation: fraction of events held out in each training, for the best epoch and early stopping (`patience`).
        normal_scores: settle the marginals of each sample and category before the flow, see `Marginals`: what makes small
            samples, categories that differ, and thresholds close. Default: yes for "switch", which alone can.
        checkpoint: folder for the state of each training; called again with it, the fit goes on where it was interrupted.
        constraints: of the conditional method, see `sciflow_physics.model.conditional.Identified`.

    Raises `UserError` for unusable arguments, columns or weights.
    """
    if method not in ("switch", "conditional"):
        raise UserError(f"method {method!r} is not one of switch, conditional")
    if method != "switch" and normal_scores:
        raise UserError(f"normal_scores = True needs the method 'switch', not {method!r}")
    normal_scores = method == "switch" if normal_scores is None else normal_scores
    unknown = sorted(set(constraints) - set(Identified._fields if method == "conditional" else ()))
    if unknown:
        raise UserError(f"the method {method!r} does not take {', '.join(unknown)}")
    if folds < 1 or members < 0 or members == 1:
        raise UserError(f"folds = {folds} and members = {members}: at least 1 fold, and 0 or at least 2 members, are needed")
    categories = categories_of(roles, sim, data)
    flow = {"transforms": transforms, "bins": bins, "hidden": list(hidden), "kind": kind}
    correction = Correction(
        roles.to_dict(),
        categories=categories,
        method=method,
        folds=folds,
        members=members,
        seed=seed,
        flow=flow,
        normal_scores=normal_scores,
    )
    options = Training(
        epochs,
        member_epochs or max(epochs // 3, 1),
        batch_size,
        learning_rate,
        patience,
        weight_decay,
        ema,
        validation,
        progress,
        None if checkpoint is None else Path(checkpoint),
    )
    samples = [_known(sample_of(part, roles, categories, name=name), name) for part, name in ((sim, "sim"), (data, "data"))]
    began, summary = time.monotonic(), []
    for fold in range(folds):
        parts = [_training_part(sample, fold, folds, seed) for sample in samples]
        for part, name in zip(parts, ("simulation", "data"), strict=True):
            events = len(np.unique(part.event))
            if events < 20:
                raise UserError(f"the {name} has {events} events outside fold {fold}: at least 20 are needed")
        model = correction.folds[fold]
        assert isinstance(model, Transport)
        summary.append(_fit_fold(model, parts[0], parts[1], roles, categories, options, seed + 1000 * fold, constraints, fold))
    sizes = [[*model.ratio.value.shape, model.ratio.depth] for model in correction.folds]  # type: ignore[union-attr,misc]
    correction.recorded_arguments["trees"] = sizes
    correction.summary = {"folds": summary, "seconds": time.monotonic() - began}
    return correction.eval()


def weighted(sim: Sample, data: Sample, roles: Roles, categories: Sequence[str], *, seed: int, member: int = 0) -> Weighted:
    """The weights of one training; member 0 is nominal, others are bootstrapped by event."""
    names = (*roles.feature_names, *roles.condition_names)
    weights, reports = [], {}
    for sample, name in ((sim, "sim"), (data, "data")):
        bootstrap = poisson(sample.event, seed, f"bootstrap {name} {member}") if member else None
        positive, reports[name] = positive_weights(
            sample, len(categories), names=names, bootstrap=bootstrap, seed=seed + member
        )
        weights.append(positive)
    matched, ratio, reports["matching"] = matching_weights(
        sim, data, weights[0], weights[1], len(categories), names=names, seed=seed + member
    )
    total = (len(sim.event) + len(data.event)) / 2
    return Weighted(matched * (total / matched.sum()), weights[1] * (total / weights[1].sum()), ratio, reports)


def _fit_fold(
    model: Transport, sim: Sample, data: Sample, roles: Roles, categories: Sequence[str],
    options: Training, seed: int, constraints: dict[str, Any], fold: int,
) -> dict[str, Any]:  # fmt: skip
    both = Sample(*(np.concatenate(pair) for pair in zip(sim, data, strict=True)))
    nominal = weighted(sim, data, roles, categories, seed=seed)
    model.ratio = nominal.ratio
    weight = torch.from_numpy(np.concatenate([nominal.sim, nominal.data]))
    both = both._replace(x=both.x * model.factors(torch.from_numpy(both.conditions)).numpy())
    mask = torch.from_numpy(both.mask)
    try:
        model.features.fit(torch.from_numpy(both.x), weight, mask)
        model.conditions.fit(model.fold_signs(torch.from_numpy(both.conditions)), weight)
    except UserError as error:
        raise UserError(f"simulation and data together: {error}") from error
    y = model.features.dequantise(torch.from_numpy(both.x), torch.from_numpy(both.id), seed=seed, mask=mask)
    z, _ = model.features(y, mask)
    context, _ = model.context(torch.from_numpy(both.conditions), torch.from_numpy(both.category))
    rows = len(sim.event)
    held = torch.from_numpy(fold_of(both.event, 10_000, seed + 31) < options.validation * 10_000)
    results = []
    for member, flow in enumerate(model.flows):
        if member == 0:
            initialise(flow, seed)
        else:
            flow.load_state_dict(model.flows[0].state_dict())
            resampled = weighted(sim, data, roles, categories, seed=seed, member=member)
            weight = torch.from_numpy(np.concatenate([resampled.sim, resampled.data]))
        epochs = options.member_epochs if member else options.epochs
        arrays = z.float(), context.float(), weight.float(), mask if model.maskable else None
        if model.method == "switch":
            switch = torch.cat([-torch.ones(rows), torch.ones(len(weight) - rows)])[:, None]
            own, scores = torch.arange(len(z)), arrays[0]
            objective: Objective | None = None
            if len(model.marginals):
                scores, objective = scores_of(model, member, both, z, weight, mask, rows)
            batch = Batch(scores, torch.cat([arrays[1], switch], 1), *arrays[2:], own)
        else:
            settings = Identified(**constraints)
            batch, own = conditional_batch(*arrays, rows, settings, len(categories), seed + member)
            objective = identified(settings, z.shape[1], context.shape[1])
        results.append(train(flow, batch, held[own], options, epochs, seed + member, objective, f"fold{fold}-member{member}"))
    learn_support(model, z, both, mask, rows)
    return {
        "weights": {name: report.to_dict() for name, report in nominal.reports.items()},
        "members": [{"epoch": r.best_epoch, "loss": r.best_validation_loss, "seconds": r.seconds} for r in results],
    }


def _known(sample: Sample, name: str) -> Sample:
    known = sample.category >= 0
    if not known.all():
        _log.warning("%s: %d rows have a category that the other sample lacks; they are not used", name, int((~known).sum()))
    return sample.take(known)


def _training_part(sample: Sample, fold: int, folds: int, seed: int) -> Sample:
    return sample if folds == 1 else sample.take(fold_of(sample.event, folds, seed) != fold)
