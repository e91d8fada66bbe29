"""Training data as tensors in memory: checked on entry, split by event, sliced by row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.training.objective import Batch
from sciflow.training.processes import process_count, process_rank

__all__ = ["as_batch", "check", "fingerprint", "map_tensors", "share", "split", "take"]

Names = Sequence[str] | Mapping[str, Sequence[str]] | None


def as_batch(data: Any) -> Batch:
    """A `Batch` from a batch, a tensor x, a tuple (x, condition, weight, mask, index, source) or a dict with those names.

    Arrays become tensors. All entries have the same number of rows.

    >>> as_batch({"x": [[1.0], [2.0]], "weight": [1.0, -0.5]}).weight
    tensor([ 1.0000, -0.5000])
    """
    if isinstance(data, Mapping):
        unknown = sorted(set(data) - set(Batch._fields))
        if unknown or "x" not in data:
            raise UserError(
                f"the data are a dict with {sorted(data)}: it needs 'x' and may have {', '.join(Batch._fields[1:])}"
            )
        data = Batch(**data)
    elif isinstance(data, tuple):
        if not 1 <= len(data) <= len(Batch._fields):
            raise UserError(f"the data are a tuple of {len(data)} entries, expected ({', '.join(Batch._fields)})")
        data = Batch(*data)
    else:
        data = Batch(data)
    if data.x is None:
        raise UserError("the data have no x")
    batch = map_tensors(_tensor, data)
    _check_rows(batch)
    return batch


def map_tensors(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of every leaf of a batch or a nested dict; None stays None."""
    if value is None:
        return None
    if isinstance(value, Batch):
        return Batch(*(map_tensors(function, entry) for entry in value))
    if isinstance(value, Mapping):
        return {key: map_tensors(function, entry) for key, entry in value.items()}
    return function(value)


def take(batch: Batch, rows: Tensor) -> Batch:
    """The rows of a batch, in the order given."""
    return map_tensors(lambda leaf: leaf.index_select(0, rows), batch)


def share(batch: Batch, rows: Tensor, device: torch.device) -> tuple[Tensor, Batch]:
    """The part of a global batch's row numbers that this process takes, and those rows on its device.

    Every process has to take part in a step: one that is left without rows gets the first one with weight 0.
    """
    count = process_count()
    size = -(-len(rows) // count)
    own = rows if count == 1 else rows[process_rank() * size : (process_rank() + 1) * size]
    found = take(batch, own if len(own) else rows[:1])
    if len(own) == 0:
        found = found._replace(weight=torch.zeros(1, dtype=batch.x.dtype, device=batch.x.device))
    return own, found if found.x.device == device else map_tensors(lambda leaf: leaf.to(device), found)


def check(batch: Batch, names: Names = None) -> Batch:
    """Refuse what would poison a training: non-finite numbers and a total weight that is not positive.

    Values where the mask is False are absent: they are set to 0 and not looked at. `names` are those of the columns
    of x, or a dict from "x", "condition" or "condition.<entry>" to names.

    >>> check(as_batch(torch.tensor([[0.0, 1.0], [2.0, float("nan")]])), names=["pt", "eta"])
    Traceback (most recent call last):
    ...
    sciflow.errors.UserError: x: column 1 'eta' has 1 value that is not finite (first in row 1): remove ...
    """
    if batch.mask is not None:
        if batch.mask.dtype != torch.bool or batch.mask.shape != batch.x.shape:
            raise UserError(
                f"the mask is {batch.mask.dtype} of shape {tuple(batch.mask.shape)}, "
                f"expected torch.bool of the shape of x, {tuple(batch.x.shape)}"
            )
        batch = batch._replace(x=torch.where(batch.mask, batch.x, torch.zeros((), dtype=batch.x.dtype)))
    columns = dict(names) if isinstance(names, Mapping) else {"x": names} if names is not None else {}
    if batch.source is not None and batch.source.shape != batch.x.shape:
        raise UserError(f"the source has shape {tuple(batch.source.shape)}, expected that of x, {tuple(batch.x.shape)}")
    checked = {"x": batch.x, "condition": batch.condition, "weight": batch.weight, "source": batch.source}
    for path, leaf in _leaves(checked, ""):
        _check_finite(path, leaf, columns.get(path))
    if batch.weight is not None:
        if batch.weight.shape != batch.x.shape[:1]:
            raise UserError(
                f"the weight has shape {tuple(batch.weight.shape)}, expected one per row, {tuple(batch.x.shape[:1])}"
            )
        total = batch.weight.double().sum().item()
        if total <= 0:
            raise UserError(
                f"the weights of {len(batch.weight)} rows sum to {total:.6g}: a density needs a positive total; "
                "check the sign convention or select rows where the positive weights prevail"
            )
    return batch


def split(rows: int, fraction: float, *, seed: int, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Random row numbers (training, validation), sorted; rows of one group (event) stay together.

    >>> training, validation = split(6, 0.5, seed=0, groups=torch.tensor([7, 7, 8, 8, 9, 9]))
    >>> len(training) % 2, len(validation) % 2
    (0, 0)
    """
    if not 0 <= fraction < 1:
        raise UserError(f"validation={fraction} is no fraction: give 0 (none) up to below 1, or a data set")
    if groups is not None and groups.shape != (rows,):
        raise UserError(f"groups has shape {tuple(groups.shape)}, expected one per row, ({rows},)")
    if fraction == 0:
        return torch.arange(rows), torch.arange(0)
    generator = torch.Generator().manual_seed(seed)
    member = torch.arange(rows) if groups is None else torch.unique(groups.cpu(), return_inverse=True)[1]
    count = int(member.max()) + 1
    order = torch.randperm(count, generator=generator)
    sizes = torch.bincount(member, minlength=count)[order].cumsum(0)
    # the groups that end within the fraction, but never none and never all
    chosen = int((sizes <= fraction * rows).sum().clamp(1, max(count - 1, 1)))
    held = torch.zeros(count, dtype=torch.bool)
    held[order[:chosen]] = True
    held = held[member]
    if bool(held.all()):
        raise UserError(f"{rows} rows in {count} group cannot be split: give validation=0 or a validation set")
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def fingerprint(batch: Batch) -> str:
    """A hash of names, shapes, types and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in _leaves(batch._asdict(), ""):
        digest.update(f"{path} {leaf.dtype} {tuple(leaf.shape)}".encode())
        digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensor(value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the data hold a {type(value).__name__} that is no tensor or numeric array: {error}") from error


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key], f"{path}.{key}".lstrip("."))
    elif value is not None:
        yield path, value


def _check_rows(batch: Batch) -> None:
    if batch.x.dim() == 0 or len(batch.x) == 0:
        raise UserError(f"x has shape {tuple(batch.x.shape)}: there are no rows to train on")
    for path, leaf in _leaves(batch._asdict(), ""):
        if leaf.shape[:1] != batch.x.shape[:1]:
            raise UserError(
                f"{path} has shape {tuple(leaf.shape)} but x has {len(batch.x)} rows: every entry needs the same rows"
            )


def _check_finite(path: str, leaf: Tensor, names: Sequence[str] | None) -> None:
    if not (leaf.is_floating_point() or leaf.is_complex()) or bool(torch.isfinite(leaf).all()):
        return
    bad = ~torch.isfinite(leaf).reshape(len(leaf), -1)
    column = int(bad.any(0).nonzero()[0, 0])
    count, first = int(bad[:, column].sum()), int(bad[:, column].nonzero()[0, 0])
    others = int(bad.any(0).sum()) - 1
    label = f" {names[column]!r}" if names is not None and column < len(names) else ""
    where = f"column {column}{label} has" if leaf.dim() > 1 else "there are"
    values = "1 value that is not finite" if count == 1 else f"{count} values that are not finite"
    more = f"; {others} more column{'s' * (others > 1)} likewise" if others else ""
    raise UserError(f"{path}: {where} {values} (first in row {first}){more}: remove the rows or mark absent features by a mask")
