"""Couplings against brute force, POT and closed forms."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sciflow.errors import UserError
from sciflow.recorded import build, configuration
from sciflow.transport.couplings import (
    ConditionalOT,
    Coupling,
    ExactOT,
    Given,
    Independent,
    PartialOT,
    SchroedingerCoupling,
    Sinkhorn,
    UnbalancedOT,
    WeightedCoupling,
    WithinClasses,
)
from sciflow.transport.couplings.sinkhorn import draw_columns, potentials
from sciflow.transport.pair import Pair
from sciflow.transport.spaces.base import Space

EVERY = [
    Independent(), ExactOT(), ExactOT(block=8), Sinkhorn(), SchroedingerCoupling(0.7), UnbalancedOT(), UnbalancedOT(base=0.5),
    PartialOT(), ConditionalOT(), WithinClasses(ExactOT()), WithinClasses(UnbalancedOT()), WeightedCoupling(), Given(),
]  # fmt: skip
PERMUTING = [ExactOT(), ExactOT(block=8), PartialOT(), ConditionalOT(), ConditionalOT(discrete=True), WithinClasses(ExactOT())]


def make(rows: int, event: tuple[int, ...] = (3,), dtype: torch.dtype = torch.float64, seed: int = 0) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(rows, *event, generator=generator, dtype=dtype)
    x1 = torch.randn(rows, *event, generator=generator, dtype=dtype) * 0.5 + 1
    label = torch.randint(3, (rows,), generator=generator)
    return Pair(x0, x1, {"label": label, "more": {"z": torch.randn(rows, 2, generator=generator, dtype=dtype)}})


def mean_cost(pair: Pair) -> float:
    return (pair.x0 - pair.x1).flatten(1).square().sum(1).mean().item()


def lexicographic(x: Tensor) -> Tensor:
    return x[torch.argsort(x[:, 0])]


# --- contract -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(3,), (1,), (2, 2, 3)])
def test_contract(coupling: Coupling, dtype: torch.dtype, event: tuple[int, ...]) -> None:
    pair = make(21, event, dtype)
    torch.manual_seed(5)
    done = coupling(pair)
    assert done.x0.shape == pair.x0.shape and done.x0.dtype == dtype
    assert done.x1 is pair.x1 and done.condition is pair.condition and done.mask is None  # no target lost, no label moved
    torch.manual_seed(5)
    for again in (pickle.loads(pickle.dumps(coupling)), build(configuration(coupling))):
        assert repr(again) == repr(coupling)
        torch.manual_seed(5)
        assert torch.equal(again(pair).x0, done.x0)
    if done.weight is not None:
        assert done.weight.dtype == dtype and done.weight.shape == (21,) and (done.weight >= 0).all()
        torch.testing.assert_close(done.weight.mean().item(), 1.0, atol=1e-5, rtol=0)
        doubled = coupling(pair._replace(weight=torch.full((21,), 2.0, dtype=dtype)))
        assert doubled.weight is not None and abs(doubled.weight.mean().item() - 2) < 1e-4  # weights multiply


@pytest.mark.parametrize("coupling", EVERY, ids=repr)
def test_a_single_row_keeps_its_noise(coupling: Coupling) -> None:
    pair = make(1)
    done = coupling(pair)
    assert torch.equal(done.x0, pair.x0)
    assert done.weight is None or torch.allclose(done.weight, torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("coupling", EVERY, ids=repr)
def test_gradients_flow_to_the_chosen_noise(coupling: Coupling) -> None:
    pair = make(12)
    x0 = pair.x0.clone().requires_grad_()
    coupling(pair._replace(x0=x0)).x0.sum().backward()
    assert x0.grad is not None and x0.grad.sum() == pair.x0.numel()


@pytest.mark.parametrize("coupling", PERMUTING, ids=repr)
def test_noise_is_permuted(coupling: Coupling) -> None:
    for rows in (2, 7, 64):
        pair = make(rows)
        torch.testing.assert_close(lexicographic(coupling(pair).x0), lexicographic(pair.x0), rtol=0, atol=0)


@pytest.mark.parametrize("coupling", EVERY, ids=repr)
def test_noise_stays_with_its_mask(coupling: Coupling) -> None:
    """Ragged events: a present feature never gets the 0 of an absent one, nor the other way round."""
    pair = make(60, (4,))
    counts = torch.randint(1, 5, (60,), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(4) < counts[:, None]
    pair = pair._replace(x0=pair.x0 * mask, x1=pair.x1 * mask, mask=mask)
    done = coupling(pair)
    assert torch.equal(done.x0 != 0, mask) and done.mask is mask


@pytest.mark.parametrize("coupling", EVERY, ids=repr)
def test_ties_and_not_a_number(coupling: Coupling) -> None:
    pair = make(10)
    tied = coupling(pair._replace(x0=torch.zeros(10, 3), x1=torch.ones(10, 3)))
    assert torch.equal(tied.x0, torch.zeros(10, 3)) and (tied.weight is None or torch.isfinite(tied.weight).all())
    spoilt = pair.x1.clone()
    spoilt[3, 1] = torch.nan
    done = coupling(pair._replace(x1=spoilt))  # no crash: the trainer names the row whose loss is not finite
    assert torch.isfinite(done.x0).all()


def test_errors() -> None:
    pair = make(4)
    with pytest.raises(ValueError, match=r"x0 has shape \(4, 2\) but x1 \(4, 3\)"):
        ExactOT()(pair._replace(x0=pair.x0[:, :2]))
    with pytest.raises(UserError, match="the data have none"):
        ConditionalOT()(pair._replace(condition=None))
    with pytest.raises(ValueError, match=r"condition.z has shape \(1, 2\), expected \(4, ...\)"):
        ConditionalOT()(pair._replace(condition={"z": torch.zeros(1, 2)}))
    for wrong in (
        lambda: ExactOT(block=1), lambda: Sinkhorn(0.0), lambda: SchroedingerCoupling(-1.0), lambda: PartialOT(0.0),
        lambda: UnbalancedOT(target=float("inf")), lambda: ConditionalOT(1.5), lambda: WeightedCoupling(0.0),
        lambda: WithinClasses(WeightedCoupling()),  # type: ignore[arg-type]
    ):  # fmt: skip
        with pytest.raises(UserError):
            wrong()


def test_autocast_does_not_coarsen_the_assignment() -> None:
    pair = make(64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ExactOT()(pair).x0, ExactOT()(pair).x0)
        rounded = ExactOT()(pair).x0
    assert torch.equal(rounded, ExactOT()(pair).x0)


# --- exact transport ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5])
def test_exact_is_the_best_of_all_permutations(size: int) -> None:
    for seed in range(5):
        pair = make(6, (size,), seed=seed)
        best = min(mean_cost(pair._replace(x0=pair.x0[list(order)])) for order in itertools.permutations(range(6)))
        assert mean_cost(ExactOT()(pair)) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_exact_has_the_optimum_of_pot(dtype: torch.dtype, offset: float) -> None:
    ot = pytest.importorskip("ot")
    pair = make(200, (8,), dtype)
    pair = pair._replace(x1=pair.x1 + offset)
    x0, x1 = pair.x0.double().numpy(), pair.x1.double().numpy()
    best = ot.emd2([], [], ot.dist(x0, x1))
    done = ExactOT()(pair)
    assert mean_cost(done._replace(x0=done.x0.double(), x1=done.x1.double())) == pytest.approx(best, rel=1e-9)


def test_exact_between_gaussians_approaches_the_closed_form() -> None:
    """W2^2 between N(0, 1) and N(m, s^2 1) in two dimensions is |m|^2 + 2 (1 - s)^2.

    The optimum over n pairs exceeds it by O(log(n) / n) and spreads by O(n^-1/2); the bounds are three times the deviations
    seen at other seeds, and the mean over eight batches has to shrink towards it.
    """
    expected = 2 * 0.8**2 + 2 * (1 - 0.5) ** 2
    errors = {}
    for rows, bound in ((64, 0.5), (1024, 0.08)):
        costs = []
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            x0, x1 = (torch.randn(rows, 2, generator=generator, dtype=torch.float64) for _ in range(2))
            costs.append(mean_cost(ExactOT()(Pair(x0, x1 * 0.5 + 0.8))))
        errors[rows] = abs(sum(costs) / 8 - expected)
        assert errors[rows] < bound
    assert errors[1024] < errors[64]


def test_blocks_stay_apart() -> None:
    pair = make(20)
    done = ExactOT(block=8)(pair)
    for rows in (slice(0, 8), slice(8, 16), slice(16, 20)):
        part = ExactOT()(Pair(pair.x0[rows], pair.x1[rows]))
        assert torch.equal(done.x0[rows], part.x0)


class Circle(Space):
    """Angles."""

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.remainder(y - x + torch.pi, 2 * torch.pi) - torch.pi


def test_distances_of_another_space() -> None:
    x1 = torch.tensor([[0.1], [3.0]])
    x0 = torch.tensor([[2.9], [6.2]])  # 6.2 is next to 0.1 around the circle, and 3.0 is between in the plane
    assert torch.equal(ExactOT(space=Circle())(Pair(x0, x1)).x0, x0.flip(0))
    assert torch.equal(ExactOT()(Pair(x0, x1)).x0, x0)
    assert torch.equal(ConditionalOT(space=Circle())(Pair(x0, x1, torch.zeros(2, dtype=torch.int64))).x0, x0.flip(0))
    weight = WeightedCoupling(0.01, space=Circle())(Pair(x0.flip(0), x1)).weight
    assert weight is not None and torch.isfinite(weight).all()


# --- entropic transport -------------------------------------------------------------------------------------------------------


def test_plan_is_that_of_pot() -> None:
    ot = pytest.importorskip("ot")
    pair = make(40)
    cost = (pair.x1[:, None] - pair.x0).square().sum(2)
    for share in (0.02, 0.3):
        epsilon = share * cost.mean()
        f, g = potentials(cost, epsilon, iterations=20000, tolerance=1e-9)
        plan = torch.exp((f[:, None] + g - cost) / epsilon) / 1600
        theirs = ot.sinkhorn([], [], cost.numpy(), epsilon.item(), method="sinkhorn_log", numItermax=20000, stopThr=1e-11)
        assert (plan - torch.as_tensor(theirs)).abs().max() < 1e-8
        torch.testing.assert_close(plan.sum(0), torch.full((40,), 1 / 40, dtype=torch.float64))


def test_unbalanced_plan_is_that_of_pot() -> None:
    ot = pytest.importorskip("ot")
    pair = make(30)
    cost = (pair.x1[:, None] - pair.x0).square().sum(2)
    epsilon, tau, even = 0.1 * cost.mean(), 0.5 * cost.mean(), [1 / 30] * 30
    share = (tau / (tau + epsilon)).item()
    f, g = potentials(cost, epsilon, rows=share, columns=share, iterations=20000, tolerance=1e-11)
    plan = torch.exp((f[:, None] + g - cost) / epsilon) / 900
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        even, even, cost.numpy(), epsilon.item(), tau.item(), reg_type="kl", numItermax=20000, stopThr=1e-12
    )
    assert (plan - torch.as_tensor(theirs)).abs().max() < 1e-7


def test_sinkhorn_limits() -> None:
    """Towards 0 exact transport; towards infinity each x0 is as likely as any other (chi-square below its 1e-4 quantile)."""
    pair = make(32)
    torch.testing.assert_close(Sinkhorn(1e-4, iterations=5000)(pair).x0, ExactOT()(pair).x0)
    torch.manual_seed(0)
    counts = torch.zeros(32, 32)
    for _ in range(320):
        drawn = (Sinkhorn(1e4)(pair).x0[:, None] == pair.x0).all(2)
        counts += drawn
    chi_square = ((counts - 10).square() / 10).sum()
    assert chi_square < 1166  # 1e-4 quantile of 992 degrees of freedom


@pytest.mark.parametrize("regularisation", [1e-6, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_sinkhorn_is_stable(regularisation: float, scale: float) -> None:
    pair = make(50, dtype=torch.float32)
    pair = pair._replace(x0=pair.x0 * scale, x1=pair.x1 * scale)
    index = (Sinkhorn(regularisation)(pair).x0[:, None] == pair.x0).all(2)
    assert (index.sum(1) == 1).all()
    if regularisation <= 1e-3:
        assert mean_cost(Sinkhorn(regularisation)(pair)) < 1.1 * mean_cost(ExactOT()(pair))


def test_bridge_between_gaussians_has_the_closed_form() -> None:
    r"""The static bridge from N(0, 1) to N(0, s^2) with reference sigma W has cov(x0, x1) = D - sigma^2 / 2.

    Here D^2 = s^2 + sigma^4 / 4 (Bunne et al. 2022, arXiv 2202.05722). Over 40 batches of 500 draws the covariance's standard
    error is below 0.006 and the batches add a bias of the order 1/500; a regularisation wrong by 2 would shift it by 0.1.
    """
    torch.manual_seed(0)
    sigma, s = 0.8, 0.6
    expected = (s**2 + sigma**4 / 4) ** 0.5 - sigma**2 / 2
    found = []
    for _ in range(40):
        pair = SchroedingerCoupling(sigma)(
            Pair(torch.randn(500, 1, dtype=torch.float64), s * torch.randn(500, 1, dtype=torch.float64))
        )
        found.append((pair.x0 * pair.x1).mean() - pair.x0.mean() * pair.x1.mean())
    assert abs(torch.stack(found).mean().item() - expected) < 0.03


def test_draws_follow_the_row() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [torch.nan, 0.0, 0.0]])
    uniform = (torch.arange(1000) + 0.5) / 1000
    index = torch.cat([draw_columns(logits[:1], u[None]) for u in uniform])
    assert abs((index == 2).double().mean().item() - 0.731) < 0.001 and not (index == 1).any()
    assert draw_columns(logits, torch.tensor([0.0, 0.999]))[0] == 0
    assert draw_columns(logits, torch.tensor([1.0, 0.999]))[0] == 2


# --- unbalanced, partial, weighted --------------------------------------------------------------------------------------------


def test_partial_matches_pot() -> None:
    ot = pytest.importorskip("ot")
    pair = make(30)
    cost = (pair.x0[:, None] - pair.x1).square().sum(2)
    for mass in (0.3, 0.8, 1.0):
        done = PartialOT(mass)(pair)
        assert done.weight is not None
        plan = ot.partial.partial_wasserstein([1 / 30] * 30, [1 / 30] * 30, cost.numpy(), m=mass * (1 - 1e-12))
        own = ((done.x0 - done.x1).square().sum(1) * done.weight).mean() * mass
        assert own.item() == pytest.approx(float((plan * cost.numpy()).sum()), rel=1e-6)
        assert int((done.weight > 0).sum()) == round(mass * 30)


def test_outliers_lose_their_weight() -> None:
    pair = make(100)
    far = pair.x1.clone()
    far[:5] += 30
    for coupling in (UnbalancedOT(0.05, target=0.2), PartialOT(0.95)):
        weight = coupling(pair._replace(x1=far)).weight
        assert weight is not None and weight[:5].max() < 0.05 < 0.5 < weight[5:].mean()


def test_unbalanced_keeps_the_base_unless_it_is_relaxed() -> None:
    """The weighted mean of x0 over many draws is that of the batch: pulls below 4.5 (false alarm 2e-5)."""
    torch.manual_seed(0)
    pair = make(64, (2,))
    for coupling, kept in ((UnbalancedOT(0.1, target=0.3), True), (UnbalancedOT(0.1, target=0.3, base=0.1), False)):
        assert coupling.keeps_base is kept
        means = []
        for _ in range(200):
            done = coupling(pair)
            assert done.weight is not None
            means.append((done.weight[:, None] * done.x0).mean(0))
        mean = torch.stack(means)
        pull = (mean.mean(0) - pair.x0.mean(0)).abs() / (mean.std(0) / 200**0.5)
        assert bool((pull < 4.5).all()) is kept


def test_weights_are_the_gibbs_kernel() -> None:
    pair = make(50)
    cost = (pair.x0 - pair.x1).square().sum(1)
    done = WeightedCoupling(0.5)(pair)
    assert done.x0 is pair.x0 and done.weight is not None
    torch.testing.assert_close(done.weight.log().diff(), (-cost / (0.5 * cost.mean())).diff())
    torch.testing.assert_close(WeightedCoupling(1e9)(pair).weight, torch.ones(50, dtype=torch.float64))


# --- conditional --------------------------------------------------------------------------------------------------------------


def test_classes_exchange_nothing_and_are_optimal_inside() -> None:
    pair = make(90)
    assert pair.condition is not None
    label = pair.condition["label"]
    onehot = torch.nn.functional.one_hot(label).double()
    results = [
        coupling(pair._replace(condition=condition)).x0
        for coupling, condition in (
            (ConditionalOT(), label), (ConditionalOT(), {"a": label[:, None]}), (ConditionalOT(), onehot),
            (ConditionalOT(discrete=True), onehot / 7), (WithinClasses(ExactOT()), label), (ConditionalOT(), label > 0),
        )
    ]  # fmt: skip
    for number in range(3):
        rows = label == number
        inside = ExactOT()(Pair(pair.x0[rows], pair.x1[rows]))
        for x0 in results[:5]:
            assert mean_cost(Pair(x0[rows], pair.x1[rows])) == pytest.approx(mean_cost(inside), rel=1e-12)
    rows = label == 0
    assert torch.equal(results[5][rows], results[0][rows]) and not torch.equal(results[5], results[0])


def test_classes_as_floating_numbers_are_classes() -> None:
    """0.0 and 1.0, one-hot rows, and a class beside a continuous entry: x0 never leaves its class."""
    pair = make(96)
    label = (torch.arange(96) % 2).double()
    pair = pair._replace(x1=pair.x1 * 0.1 + 3 * label[:, None])  # far apart: exchange between classes would pay
    rows = {tuple(row.tolist()): int(number) for row, number in zip(pair.x0, label, strict=True)}
    free = torch.randn(96, 1, generator=torch.Generator().manual_seed(0)).double()
    exact = WithinClasses(ExactOT())(pair._replace(condition=label)).x0
    for condition in (label, label[:, None], torch.nn.functional.one_hot(label.long()).double()):
        assert torch.equal(ConditionalOT()(pair._replace(condition=condition)).x0, exact)
    for condition in (torch.cat((label[:, None], free), 1), {"class": label, "energy": free}):
        x0 = ConditionalOT(0.3)(pair._replace(condition=condition)).x0
        assert [rows[tuple(row.tolist())] for row in x0] == label.int().tolist() and not torch.equal(x0, pair.x0)
    loose = ConditionalOT(0.9, discrete=False)(pair._replace(condition=label)).x0  # told that they are no classes
    assert [rows[tuple(row.tolist())] for row in loose] != label.int().tolist()


def test_unique_labels_leave_everything_in_place() -> None:
    pair = make(20)._replace(condition=torch.arange(20))
    assert torch.equal(ConditionalOT()(pair).x0, pair.x0)


def test_ratio_moves_between_none_and_plain_transport() -> None:
    pair = make(80)._replace(condition=torch.linspace(-1, 1, 80, dtype=torch.float64)[:, None])
    costs = [mean_cost(ConditionalOT(ratio)(pair)) for ratio in (1e-5, 0.01, 0.1, 0.3)]
    plain = mean_cost(ExactOT()(pair))
    assert mean_cost(pair) >= costs[0] > costs[1] > costs[2] > costs[3] >= plain - 1e-9
    assert mean_cost(ConditionalOT(0.99)(pair)) == pytest.approx(plain)


def test_weight_meets_the_ratio() -> None:
    """The share of pairs that would gain, recomputed from the definition at the weight that reproduces the result."""
    pair = make(60)._replace(condition=make(60, (2,), seed=3).x1)
    cost = (pair.x1[:, None] - pair.x0).square().sum(2)
    c = pair.condition
    c = (c - c.mean(0)) / c.std(0)
    apart = (c[:, None] - c).square().sum(2)

    def share(w: float) -> float:
        return ((cost + w * apart < cost.diagonal()[:, None]).double().mean()).item()

    low, high = 0.0, 1e4
    for _ in range(80):
        w = (low + high) / 2
        low, high = (w, high) if share(w) > 0.02 else (low, w)
    columns = linear_sum_assignment((cost + high * apart).numpy())[1]
    assert torch.equal(ConditionalOT(0.02)(pair).x0, pair.x0[columns])


def test_attributes_tell_the_truth() -> None:
    keeps = {type(c).__name__: (c.keeps_condition, c.keeps_base, c.keeps_target, c.needs_equal_weights) for c in EVERY[::-1]}
    assert keeps == {
        "Independent": (True, True, True, False),
        "ExactOT": (False, True, True, True),
        "Sinkhorn": (False, True, True, True),
        "SchroedingerCoupling": (False, True, True, True),
        "UnbalancedOT": (False, True, False, True),
        "PartialOT": (False, False, False, True),
        "ConditionalOT": (True, True, True, True),
        "WithinClasses": (True, True, True, True),
        "WeightedCoupling": (False, False, False, False),
        "Given": (True, True, True, False),
    }
