"""The joint transformer: variable numbers of observations, missing entries, what is known stays known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.distributions import MultivariateNormal

from sciflow.errors import UserError
from sciflow.posterior.amortised import (
    AmortisedPosterior,
    JointMatching,
    JointNetwork,
    JointRecipe,
    SplineRecipe,
    Tokens,
    fit_posterior,
)
from sciflow.training import Batch
from sciflow.transport import TransportFlow

PRIOR = MultivariateNormal(torch.zeros(1), torch.eye(1))
TINY = JointRecipe(16, 1, 2, frequencies=2, steps=8, training={"epochs": 1, "batch_size": 128})


def network() -> JointNetwork:
    torch.manual_seed(0)
    return JointNetwork(2, 3, width=16, blocks=2, heads=2)


def test_missing_entries_have_no_influence_and_present_ones_have() -> None:
    x, t = torch.randn(4, 2), torch.rand(4)
    y = torch.randn(4, 3)
    present = torch.tensor([1.0, 0.0, 1.0]).expand(4, 3)
    v = network()(x, t, torch.cat((y, present), 1))
    changed = y.clone()
    changed[:, 1] = 1e6
    assert torch.equal(network()(x, t, torch.cat((changed, present), 1)), v)
    changed[:, 2] += 1
    assert not torch.allclose(network()(x, t, torch.cat((changed, present), 1)), v)


def test_exchangeable_entries_have_no_order_and_others_have() -> None:
    x, t, y = torch.randn(4, 2), torch.rand(4), torch.randn(4, 6)
    turned = y.reshape(4, 3, 2).flip(1).flatten(1)
    for exchangeable in (True, False):
        torch.manual_seed(0)
        found = JointNetwork(2, 3, 2, width=16, blocks=2, heads=2, exchangeable=exchangeable)
        first, second = (found(x, t, torch.cat((rows, torch.ones(4, 3)), 1)) for rows in (y, turned))
        assert torch.allclose(first, second, atol=1e-5) == exchangeable


def test_every_weight_has_a_gradient() -> None:
    flow = TransportFlow(2, encoder=Tokens(3), network=network())
    flow.train()
    JointMatching()(flow, Batch(torch.randn(64, 2), torch.randn(64, 3))).mean().backward()
    assert all(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in flow.network.parameters())


def test_the_kinds_of_rows() -> None:
    torch.manual_seed(0)
    x, present = torch.zeros(20000, 2), torch.ones(20000, 3, dtype=torch.bool)
    known, there = JointMatching(missing=0.5).known(True, x, present)
    data, nothing = torch.tensor([False, False, True, True, True]), torch.zeros(5, dtype=torch.bool)
    shares = [(known == pattern).all(1).double().mean() for pattern in (data, nothing, ~data)]
    # chosen on purpose, and by chance: 0.4 + 0.15 (0.7^2 0.3^3 + 0.3^2 0.7^3), ...; 5 sd of the count
    wanted = (
        0.4 + 0.15 * (0.49 * 0.027 + 0.09 * 0.343),
        0.2 + 0.15 * (0.7**5 + 0.3**5),
        0.1 + 0.15 * (0.09 * 0.343 + 0.49 * 0.027),
    )
    assert all(abs(float(share) - want) < 0.018 for share, want in zip(shares, wanted, strict=True))
    assert not (known[:, 2:] & ~there).any() and not there.all()
    known, there = JointMatching().known(False, x, present)
    assert (known == data).all() and there.all()


def test_known_tokens_are_not_moved_and_cost_nothing() -> None:
    """With everything known but one parameter, the loss is that parameter's."""
    flow = TransportFlow(2, encoder=Tokens(3), network=network()).eval()
    torch.manual_seed(1)
    loss = JointMatching()(flow, Batch(torch.randn(8, 2), torch.randn(8, 3)))
    assert loss.shape == (8,) and bool((loss > 0).all())


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="sum to 1"):
        JointMatching((0.5, 0.5, 0.5, 0, 0))
    with pytest.raises(UserError, match="JointNetwork"):
        JointMatching()(TransportFlow(2, condition=3), Batch(torch.zeros(4, 2), torch.zeros(4, 3)))
    with pytest.raises(ValueError, match=r"at most 3"):
        Tokens(3)({"observations": torch.zeros(1, 4, 1), "mask": torch.ones(1, 4, dtype=torch.bool)})
    theta = torch.randn(100, 1)
    incomplete = {"observations": torch.randn(100, 2), "mask": torch.ones(100, 2, dtype=torch.bool)}
    with pytest.raises(UserError, match="use flow='joint'"):
        fit_posterior(PRIOR, theta, incomplete, progress=False)


def sets(rows: int, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """theta ~ N(0, 1) with 0 to 5 observations y_i ~ N(theta, 1)."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(rows, 1, generator=generator)
    mask = torch.arange(5) < torch.randint(0, 6, (rows, 1), generator=generator)
    y = theta.unsqueeze(1) + torch.randn(rows, 5, 1, generator=generator)
    return theta, {"observations": torch.where(mask.unsqueeze(2), y, torch.nan), "mask": mask}


@pytest.mark.parametrize("exchangeable", [True, False])
def test_saved_joint_posteriors_take_any_number_of_observations(tmp_path: Path, exchangeable: bool) -> None:
    theta, y = sets(300)
    found = fit_posterior(PRIOR, theta, y, flow=TINY, exchangeable=exchangeable, progress=False)
    found = AmortisedPosterior.load(found.save(tmp_path / "joint"))
    if exchangeable:
        for count in (0, 1, 3):
            assert found(torch.zeros(count, 1), 10, force=True).x.isfinite().all()
    one = {"observations": torch.tensor([[1.0], [torch.nan], [0.5], [torch.nan], [torch.nan]]),
           "mask": torch.tensor([True, False, True, False, False])}  # fmt: skip
    assert found(one, 10, density=True).x.isfinite().all()
    with pytest.raises(UserError, match="NaN or infinite"):
        found({"observations": torch.full((5, 1), torch.nan), "mask": torch.ones(5, dtype=torch.bool)}, 10)


def test_missing_scalar_entries() -> None:
    theta = torch.randn(300, 1)
    mask = torch.rand(300, 2) < 0.7
    y = torch.where(mask, theta + 0.1 * torch.randn(300, 2), torch.nan)
    found = fit_posterior(PRIOR, theta, {"observations": y, "mask": mask}, flow=TINY, progress=False)
    assert int(found.excluded) == 0
    one = {"observations": torch.tensor([0.5, torch.nan]), "mask": torch.tensor([True, False])}
    assert found(one, 10).x.isfinite().all() and found(torch.tensor([0.5, 0.5]), 10).x.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [JointRecipe(32, 2, 4, training={"epochs": 80}), SplineRecipe(2, 8, (32, 32))], ids=repr)
def test_the_posterior_narrows_with_the_number_of_observations(recipe: JointRecipe | SplineRecipe) -> None:
    """theta | n observations with mean m: N(n m / (n + 1), 1 / (n + 1)), for observation sets of every kind.

    Quantiles of a unit normal around 0.8 for n = 1, 2, 5, and the first twenty sets that are not empty of a fresh simulation.
    Errors are those of 5000 simulations, not of 2000 draws: sets in the tails of the prior predictive are off by up to 0.6
    posterior sd and 1.3 in width, the average one by 0.1 and 1.08. A set less spread than all simulated ones is not among them:
    there neither has learned anything (0.8 five times: 1.6 too wide by the set encoder, 1.06 by the joint transformer).
    """
    theta, y = sets(5000)
    found = fit_posterior(PRIOR, theta, y, flow=recipe, exchangeable=True, progress=False)
    around = [0.8 + torch.special.ndtri((torch.arange(n) + 0.5) / n).unsqueeze(1) for n in (1, 2, 5)]
    _, fresh = sets(40, seed=99)
    simulated = [rows[mask] for rows, mask in zip(fresh["observations"], fresh["mask"], strict=True) if bool(mask.any())]
    means, widths = [], []
    for rows in [*around, *simulated[:20]]:
        count = len(rows)
        draws = found(rows, 2000, force=True)
        spread = (count + 1) ** -0.5
        means.append(abs(float(draws.mean()) - float(rows.sum()) / (count + 1)) / spread)
        widths.append(abs(math.log(float(draws.std()) / spread)))
    assert max(means) < 0.8 and sum(means) / len(means) < 0.2
    assert max(widths) < math.log(1.4) and sum(widths) / len(widths) < math.log(1.12)
