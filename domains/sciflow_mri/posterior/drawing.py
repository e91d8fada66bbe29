"""Draws of one slice in the units of its scan, judged by the sampler and by whoever looks at the measurement itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.result import Posterior
from sciflow.posterior.samplers import AnnealedLangevin
from sciflow.posterior.samplers.langevin_tests import residual_test
from sciflow.training.progress import ProgressBar
from sciflow_mri.posterior.acquisition import Acquisition
from sciflow_mri.posterior.kinds import kind_of
from sciflow_mri.posterior.learned import AmortisedSampler, NullSpaceSampler, draw_pairs
from sciflow_mri.posterior.observation import flagged as observation_flag
from sciflow_mri.posterior.rough import data_scale

__all__ = ["FLAG", "Look", "default_sampler", "draw_images", "flagged", "in_bf16"]

Look = Callable[[Acquisition], Sequence[Test]]

FLAG = "out_of_distribution"  # of the statistics: 1 or 0; absent if nobody looked
_CHUNK, _FEW = 16, 4
# Chosen on simulated scans of the validation person: finer last levels make cleaner draws and slower chains. The noise of a
# scan is an estimate, 10 to 25 % too large at 64 x 64, where heads leave little air, and by half if 4 lines are outside of the
# calibration.
_SETTINGS: dict[str, Any] = {
    "coarse": 20, "levels": ((0.4, 2), (0.2, 2), (0.12, 3), (0.07, 15)), "thin": 4, "noise_error": 0.3,
    "noise_excess": 0.55,
}  # fmt: skip


def default_sampler(prior: Any, *, chunk: int | None = None, bf16: bool = True, **settings: Any) -> Any:
    """The sampler for a model, with the settings of the benchmarks: `AnnealedLangevin`, at the scale that the prior was trained
    with, or for models of other kinds (`kind_of`) `AmortisedSampler` or `NullSpaceSampler`.

    Arguments:
        prior: a flow of `image_flow`, `amortised_flow`, or a `NullSpaceFlow`.
        chunk: draws at once, 16 by default.
        bf16: velocities in bfloat16 products; a null-space flow is always in its own dtype, whose densities are exact.
        settings: of the sampler.

    Raises `UserError` if the prior does not say its scale.
    """
    number = _CHUNK if chunk is None else chunk
    kind = kind_of(prior)
    if kind == "amortised":
        return AmortisedSampler(chunk=number, bf16=bf16, **settings)
    if kind == "null-space":
        return NullSpaceSampler(chunk=number, **settings)
    scale = getattr(getattr(prior, "network", None), "data_scale", None)
    if scale is None:
        raise UserError(
            f"the prior is a {type(prior).__name__} that does not state the scale of its data: give a sampler, such as "
            "AnnealedLangevin(data_scale), or a flow of image_flow"
        )
    return AnnealedLangevin(scale, chunk=number, bf16=bf16, **{**_SETTINGS, **settings})


def draw_images(
    acquisition: Acquisition, prior: Any, draws: int, *, sampler: Any = None, seed: int = 0, observation: Look | None = None,
    progress: bool = True,
) -> Posterior:  # fmt: skip
    """Complex draws (1, draws, y, x) of the image, in units of the scan, with the certificate of all tests.

    Arguments:
        acquisition: on the device of the prior.
        prior: a flow over (2, y, x), or a model of another kind (`kind_of`).
        sampler: a `Sampler` of the engine, or one of `sciflow_mri.posterior.learned`; `default_sampler` without one.
        observation: tests of the measurement alone, see `observation_look`; whether they flag it becomes `FLAG` in the
            statistics.

    Refined maps may bend to a wrong mask: the residual of a few draws under those of calibration lines is tested, too.

    Chains that were kept to be compared are not part of the result. Raises `UserError` if sizes differ.
    """
    sampler = default_sampler(prior) if sampler is None else sampler
    looks = [] if observation is None else list(observation(acquisition))
    looks += _believed(acquisition, prior, seed, bf16=in_bf16(sampler))
    with torch.no_grad(), _progress(sampler, prior, draws, progress) as visible:
        found = draw_pairs(acquisition, prior, draws, sampler, seed=seed, progress=visible)
    pairs = found.x
    image = torch.complex(pairs[:, :, 0], pairs[:, :, 1]) * acquisition.scale
    figures = {
        "scale": acquisition.scale, "acceleration": acquisition.acceleration,
        "sigma": float(acquisition.sigma.square().mean().sqrt()),
    }  # fmt: skip
    if observation is not None:
        figures[FLAG] = float(observation_flag(looks))
    traces = {name: trace for name, trace in found.traces.items() if name == "residual"}
    certificate = replace(found.certificate.extended(looks), subject=acquisition.label)
    return replace(found, x=image, statistics={**found.statistics, **figures}, traces=traces, certificate=certificate)


def in_bf16(sampler: Any) -> bool:
    """Whether a sampler looks at velocities in bfloat16."""
    return bool(getattr(getattr(sampler, "sampler", sampler), "bf16", True))


def _believed(acquisition: Acquisition, prior: Any, seed: int, *, bf16: bool) -> list[Test]:
    """Where maps were refined: the test of the residual under the maps that were not."""
    if acquisition.calibrated is None:
        return []
    problem = acquisition.calibrated.problem(prior)
    with torch.no_grad():
        found = AnnealedLangevin(data_scale(prior), bf16=bf16, states=0, **_SETTINGS)(problem, _FEW, seed=seed, progress=False)
    test = residual_test(found, _SETTINGS["noise_error"])
    assert isinstance(test.threshold, tuple)
    name, limit = "data residual, maps of calibration lines", test.threshold[1]
    return [Test(name, test.value, limit, "<=", description=f"of {_FEW} draws; too large: noise or mask are wrong")]


def flagged(statistics: Any) -> bool:
    """Whether the statistics of a result say that the measurement is out of the distribution of the prior."""
    return bool(statistics.get(FLAG, 0))


@contextlib.contextmanager
def _progress(sampler: Any, prior: Any, draws: int, wanted: bool) -> Iterator[bool]:
    """A bar that counts draws by the evaluations they take; yields whether the sampler should show its own instead."""
    network, total = getattr(prior, "network", None), _evaluations(sampler, draws)
    if not wanted or not total or network is None:
        yield wanted
        return
    done = 0
    with ProgressBar(total) as bar:

        def advance(module: Any, arguments: Any, output: Any) -> None:
            nonlocal done
            done = min(done + len(output), total)
            bar.update(done, f"{done * draws // total} of {draws} draws")

        handle = network.register_forward_hook(advance) if bar.visible else None
        try:
            yield False
        finally:
            if handle is not None:
                handle.remove()


def _evaluations(sampler: Any, draws: int) -> int:
    """Rows that go through the network, 0 if that is not known."""
    if not isinstance(sampler, AnnealedLangevin):
        return 0
    levels = [1 + moves for _, moves in sampler.levels]
    chains = min(sampler.chains, draws) * (1 + sampler.states * sampler.thin) if sampler.states else 0
    return draws * (sampler.coarse + sum(levels)) + chains
