"""Whether an acquisition is like the scans that a prior was made for: a score fixed on people, a threshold, a refusal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.recorded import Recorded
from sciflow_mri.posterior.acquisition import Acquisition
from sciflow_mri.posterior.distance import FeatureDistance
from sciflow_mri.posterior.features import COVARIATES, SCAN_FEATURES, covariates, scan_features
from sciflow_mri.posterior.prior_features import PRIOR_FEATURES, network_width, prior_features

__all__ = ["Features", "ObservationModel", "fit_observation", "flagged", "observation_features", "observation_look",
           "observation_tests"]  # fmt: skip

_NAME = "acquisition like those of the prior"
_WARNING = 5  # times as many scans are warned of as are flagged
_SOURCE = (
    "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks, Lee et al. 2018, "
    "arXiv:1807.03888; Computing Nonparametric p-values, Vovk et al. 2005"
)
_WORDS = {"scan": "the measurement itself", "prior": "the prior's denoiser", "network": "activations of the prior's network"}


class Features(NamedTuple):
    """Of n acquisitions, float64: `given` (n, 4) is what the others may depend on, see `COVARIATES`."""

    given: Tensor
    scan: Tensor
    prior: Tensor
    network: Tensor

    @staticmethod
    def joined(parts: Sequence[Features]) -> Features:
        return Features(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def observation_features(acquisitions: Sequence[Acquisition], prior: Any, *, bf16: bool = True) -> Features:
    """`scan_features` and `prior_features` of acquisitions of one size. Raises `UserError` as `prior_features`."""
    given = torch.stack([covariates(acquisition) for acquisition in acquisitions])
    scan = torch.stack([scan_features(acquisition) for acquisition in acquisitions])
    return Features(given.cpu(), scan.cpu(), *(part.cpu() for part in prior_features(acquisitions, prior, bf16=bf16)))


class ObservationModel(nn.Module, Recorded):
    r"""The score of an acquisition and the threshold above which it is unlike all that the prior was made for:

        score = max_g (log D_g(f_g | c) - a_g) / b_g,    g in (scan, prior, network),

    with D_g the `FeatureDistance` of a group of features, c the `COVARIATES`, and a_g, b_g mean and deviation of log D_g on
    people that D_g had not seen. Threshold and warning are quantiles of such scores. Made by `fit_observation`.

    Arguments:
        size: (y, x) of the images.
        width: number of pooled activations of the prior's network.
    """

    location: Tensor
    spread: Tensor
    scores: Tensor
    threshold: Tensor
    warning: Tensor
    people: Tensor

    def __init__(self, size: Sequence[int], width: int, scores: int = 0, *, level: float = 0.99) -> None:
        super().__init__()
        self.size, self.level = (int(size[0]), int(size[1])), float(level)
        counts = {"scan": len(SCAN_FEATURES), "prior": len(PRIOR_FEATURES), "network": int(width)}
        self.distances = nn.ModuleDict({name: FeatureDistance(count, len(COVARIATES)) for name, count in counts.items()})
        self.register_buffer("location", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(3, dtype=torch.float64))
        self.register_buffer("scores", torch.zeros(scores, dtype=torch.float64))
        self.register_buffer("threshold", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("warning", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("people", torch.tensor(0))

    def parts(self, features: Features) -> Tensor:
        """Standardised log-distances (n, 3) of the groups scan, prior, network; infinite where a feature is not finite."""
        found = []
        for name, distance in self.distances.items():
            value = getattr(features, name)
            good = value.isfinite().all(1)
            logs = distance(torch.where(good.unsqueeze(1), value, 0), features.given)
            found.append(torch.where(good, logs, torch.inf))
        return (torch.stack(found, 1) - self.location) / self.spread

    def score(self, features: Features) -> Tensor:
        """(n,)."""
        return self.parts(features).amax(1)

    def extra_repr(self) -> str:
        return f"size={self.size}, {len(self.scores)} scans of {int(self.people)} people, threshold {float(self.threshold):.3g}"


def fit_observation(people: Mapping[str, Features], size: Sequence[int], *, level: float = 0.99) -> ObservationModel:
    """The model of simulated scans of the people that the prior was trained on, the threshold fixed by cross-fitting.

    Each person in turn is left out: distances fitted to the others score the scans of this one. Location, spread and the
    `level`-quantile (conformal: of the n + 1 ranks; for warnings that with five times the rate) come from these scores; the
    final distances are fitted to all.

    What this cannot see: the prior itself has learned from all of these people. The false positive rate on people it never saw
    has to be measured (benchmarks/mri_out_of_distribution.py).

    Arguments:
        people: name -> `observation_features` of simulated scans of that person.
        size: (y, x).

    Raises `UserError` for fewer than two people, or too few scans for the level.
    """
    if len(people) < 2:
        raise UserError(f"{len(people)} people: give simulated scans of at least two, the threshold is fixed across people")
    count = sum(len(features.given) for features in people.values())
    if not 0 < level < 1 or math.ceil((count + 1) * level) > count:
        raise UserError(f"{count} scans cannot fix a quantile of {level:g}: give {math.ceil(level / (1 - level))} or more")
    model = ObservationModel(size, next(iter(people.values())).network.shape[1], count, level=level)
    logs = []
    for name, held in people.items():
        _fit(model, Features.joined([features for other, features in people.items() if other != name]))
        logs.append(model.parts(held))  # location 0, spread 1 until now
    crossed = torch.cat(logs)
    model.location.copy_(crossed.mean(0))
    model.spread.copy_(crossed.std(0))
    scores = ((crossed - model.location) / model.spread).amax(1).sort().values
    model.scores.copy_(scores)
    model.threshold.copy_(scores[math.ceil((count + 1) * level) - 1])
    model.warning.copy_(scores[math.ceil((count + 1) * (1 - min(_WARNING * (1 - level), 0.5))) - 1])
    model.people.fill_(len(people))
    _fit(model, Features.joined(list(people.values())))
    return model.eval()


def observation_tests(acquisition: Acquisition, fitted: ObservationModel, prior: Any) -> list[Test]:
    """The score against its threshold, and its parts as figures; names what deviates most. Not evaluated for masks of points.

    Arguments:
        fitted: of `fit_observation`, for this prior.
        prior: the flow over (2, y, x).

    Raises `UserError` if the sizes differ or the prior is another one.
    """
    if acquisition.size != fitted.size:
        raise UserError(
            f"{acquisition.label}: the image has {acquisition.size} points, its test was fitted for {fitted.size}: fit it again"
        )
    network = fitted.distances["network"]
    assert isinstance(network, FeatureDistance)
    if len(network.mean) != network_width(prior):
        raise UserError("the test of the observation was fitted with another prior: fit it again with fit_observation")
    if acquisition.mask.dim() == 2:
        text = "masks of points are not tested: the score was made for masks of lines"
        return [Test(_NAME, None, description=text, reference=_SOURCE)]
    features = observation_features([acquisition], prior)
    parts = fitted.parts(features)[0]
    score = float(parts.max())
    n = len(fitted.scores)
    p = (1 + int((fitted.scores >= score).sum())) / (1 + n)
    deviations = []
    for name, labels in (("scan", SCAN_FEATURES), ("prior", PRIOR_FEATURES)):
        distance = fitted.distances[name]
        assert isinstance(distance, FeatureDistance)
        deviations += list(zip(labels, distance.deviations(getattr(features, name), features.given)[0].tolist(), strict=True))
    worst = sorted(deviations, key=lambda entry: -abs(entry[1]))[:3]
    text = (
        f"largest standardised distance to {n} simulated scans of {int(fitted.people)} people; conformal p = {p:.3g}; "
        "farthest: " + ", ".join(f"{label} {value:+.1f} deviations" for label, value in worst)
    )
    found = [
        Test(_NAME, score, float(fitted.threshold), "<=", description=text, reference=_SOURCE),
        Test(f"{_NAME}, warning", score, float(fitted.warning), "<=", description=text, reference=_SOURCE, severity="warn"),
    ]
    for (name, value), words in zip(zip(fitted.distances, parts.tolist(), strict=True), _WORDS.values(), strict=True):
        found.append(Test(f"distance of the acquisition: {name}", value, description=f"{words}; standardised, reported"))
    return found


def flagged(tests: Sequence[Test]) -> bool:
    """Whether the score of the acquisition is above its threshold, or not finite: out of distribution, to be refused or forced.

    >>> flagged([Test("acquisition like those of the prior", 7.0, 3.1, "<=")])
    True
    """
    return any(test.name == _NAME and test.outcome in ("failed", "warned") for test in tests)


def observation_look(
    fitted: ObservationModel, prior: Any, *others: Callable[[Acquisition], Sequence[Test]]
) -> Callable[[Acquisition], list[Test]]:
    """acquisition -> `observation_tests` and those of `others`: what `reconstruct(observation=...)` takes.

    The former look at the acquisition by calibration lines alone, as those were that they were fitted on.
    """

    def look(acquisition: Acquisition) -> list[Test]:
        found = observation_tests(acquisition.calibrated or acquisition, fitted, prior)
        return [*found, *(test for other in others for test in other(acquisition))]

    return look


def _fit(model: ObservationModel, features: Features) -> None:
    for name, distance in model.distances.items():
        assert isinstance(distance, FeatureDistance)
        distance.fit(getattr(features, name), features.given)
