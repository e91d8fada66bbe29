"""What Markov chains say of themselves: R-hat, effective sizes, their interval and their growth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from arviz_stats.base import array_stats
from torch import Tensor

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.diagnostics.inputs import parameter_names

__all__ = ["ChainSize", "chain_size", "chain_tests", "effective_sizes", "split_r_hat"]

_MOST = 256  # parameters that are looked at
_VEHTARI = "Rank-normalization, folding, and localization: an improved R-hat, Vehtari et al. 2021, arXiv:1903.08008"
_BATCHES = "Batch means and spectral variance estimators in Markov chain Monte Carlo, Flegal and Jones 2010, arXiv:0811.1729"


class ChainSize(NamedTuple):
    """Effective size of the mean by batch means with a bootstrap interval (95 %), and its `growth`: the size of all draws over
    twice that of the first halves, about 1 once chains mix, about 1/2 while they wander: then the size is not to be trusted."""

    size: float
    low: float
    high: float
    growth: float


def split_r_hat(x: Tensor) -> Tensor:
    """Rank-normalised split R-hat (*event) of chains (chains, draws, *event): the larger of bulk and folded; NaN for 1 chain.

    Source: Rank-normalization, folding, and localization: an improved R-hat, Vehtari et al. 2021, arXiv:1903.08008.

    >>> generator = torch.Generator().manual_seed(0)
    >>> bool(split_r_hat(torch.randn(4, 500, 1, generator=generator)) < 1.01)
    True
    """
    return _over_columns(x, lambda chains: array_stats.rhat(chains) if len(chains) > 1 else np.nan)


def effective_sizes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Bulk and tail effective sizes (*event) of chains (chains, draws, *event), split and rank-normalised. Source as above."""
    return (
        _over_columns(x, lambda chains: array_stats.ess(chains, method="bulk")),
        _over_columns(x, lambda chains: array_stats.ess(chains, method="tail", prob=(0.05, 0.95))),
    )


def chain_size(chains: Tensor, *, bootstrap: int = 1000, seed: int = 0) -> ChainSize:
    """Effective size of the mean of one quantity (chains, draws): N times its variance over that of its batches' means.

    About 30 batches, of sqrt(draws) draws or more, so that sizes below 30 are not resolved; the interval resamples batches of
    all chains. The growth is that of the autocorrelation estimate, which has less noise.

    Source: Batch means and spectral variance estimators in Markov chain Monte Carlo, Flegal and Jones 2010, arXiv:0811.1729.
    """
    values = _columns(chains)[..., 0]
    if values.shape[1] < 16:
        raise UserError(f"{values.shape[1]} draws a chain: an effective size needs at least 16")
    generator = np.random.default_rng(seed)
    means, squares, length = _batches(values)
    picked = generator.integers(0, len(means), (bootstrap, len(means)))
    sizes = _size(means[picked], squares[picked], length)
    low, high = np.quantile(sizes, [0.025, 0.975])
    size = float(_size(means, squares, length))
    whole, half = (float(array_stats.ess(x, method="mean")) for x in (values, values[:, : values.shape[1] // 2]))
    return ChainSize(size, float(low), float(high), whole / (2 * half))


def chain_tests(x: Any, *, names: Sequence[str] | None = None, seed: int = 0) -> list[Test]:
    """R-hat (warns above 1.01, fails above 1.1), bulk and tail effective size (warn below 100 a chain), the size of the
    mean with its interval and its growth, each for the parameter that does worst.

    For equally weighted chains (chains, draws, *event), or a `Result` of them.

    R-hat compares chains: if all start in one mode, or there is one chain only, nothing is known of other modes; with one
    chain it is "not evaluated".
    """
    x = x.x if hasattr(x, "x") else x
    x, labels, some = _some(x, names)
    r_hat, (bulk, tail) = split_r_hat(x).flatten(), effective_sizes(x)
    columns = _columns(x)
    chains, draws = columns.shape[:2]
    worst = int(torch.nan_to_num(r_hat, nan=torch.inf).argmax())
    value = float(r_hat[worst]) if chains > 1 else None
    text = f"rank-normalised split R-hat of {labels[worst]} over {chains} chains of {draws} draws{some}"
    least = 100.0 * chains
    tests = [
        Test("R-hat", value, 1.01, "<=", description=text, reference=_VEHTARI, severity="warn"),
        Test("R-hat, limit", value, 1.1, "<=", description=text, reference=_VEHTARI),
    ]
    for name, sizes in (("bulk", bulk.flatten()), ("tail", tail.flatten())):
        k = int(torch.nan_to_num(sizes, nan=-1.0).argmin())
        text = f"of {labels[k]}; below 100 a chain neither this nor R-hat is reliable"
        tests.append(
            Test(
                f"effective size ({name})", float(sizes[k]), least, ">=", description=text, reference=_VEHTARI, severity="warn"
            )
        )
    if draws >= 32:
        found = chain_size(torch.from_numpy(columns[..., worst]), seed=seed)
        text = f"of the mean of {labels[worst]}; 95 % bootstrap interval [{found.low:.0f}, {found.high:.0f}]"
        grows = f"of {labels[worst]}: size of all draws over twice that of the first half; near 1/2 sizes are optimistic"
        tests += [
            Test("effective size of the mean", found.size, description=text, reference=_BATCHES),
            Test("growth of the effective size", found.growth, 0.6, ">=", description=grows, severity="warn"),
        ]
    return tests


def _columns(x: Tensor) -> np.ndarray:
    """Chains (chains, draws, columns) in float64; complex values become two columns."""
    values = torch.view_as_real(x.detach().resolve_conj()) if x.is_complex() else x.detach()
    if values.dim() < 2 or not bool(values.isfinite().all()):
        raise UserError(f"chains of shape {tuple(x.shape)} with finite values are needed: (chains, draws, *event)")
    return values.reshape(*values.shape[:2], -1).double().cpu().numpy()


def _some(x: Tensor, names: Sequence[str] | None) -> tuple[Tensor, list[str], str]:
    """At most 256 real parameters, evenly spaced, with their names and a remark if there are more."""
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    x = x.reshape(*x.shape[:2], -1)
    count = x.shape[2]
    if names is not None and 2 * len(names) == count:  # complex
        names = [f"{part} {name}" for name in names for part in ("Re", "Im")]
    labels = parameter_names(names, count)
    if count <= _MOST:
        return x, labels, ""
    kept = torch.linspace(0, count - 1, _MOST).long().tolist()
    return x[..., kept], [labels[k] for k in kept], f", {_MOST} of {count} parameters"


def _over_columns(x: Tensor, function: Any) -> Tensor:
    columns = _columns(x)
    if columns.shape[1] < 4:
        raise UserError(f"{columns.shape[1]} draws a chain: R-hat and effective sizes need at least 4")
    values = [function(columns[..., k]) for k in range(columns.shape[2])]
    shape = (*x.shape[2:], 2) if x.is_complex() else x.shape[2:]
    return torch.tensor(np.array(values, dtype=float)).reshape(shape)


def _batches(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Means and mean squares of batches (B,), and their length."""
    length = max(int(np.sqrt(values.shape[1])), values.size // 30)  # 30 batches at least, where chains are long enough
    length = min(length, values.shape[1] // 2)
    count = values.shape[1] // length
    cut = values[:, -count * length :].reshape(-1, length)
    cut = cut - cut.mean()
    return cut.mean(1), np.square(cut).mean(1), length


def _size(means: np.ndarray, squares: np.ndarray, length: int) -> np.ndarray:
    variance = squares.mean(-1) - means.mean(-1) ** 2
    of_means = means.var(-1, ddof=1)
    count = means.shape[-1] * length
    return count * variance / (length * np.where(of_means > 0, of_means, np.nan))
