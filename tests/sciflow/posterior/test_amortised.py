"""Coordinates, scaling, distance, embeddings: the pieces around the flow."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import constraints

from sciflow.errors import UserError
from sciflow.posterior.amortised import Coordinates, Embedded, Perceptron, Scaling, SimulationDistance, Tokens
from sciflow.posterior.amortised.coordinates import bounds_of
from sciflow.recorded import build, configuration

INF = math.inf


@pytest.mark.parametrize("edge", [0.1, 1.0, None])
def test_coordinates_are_inverse_to_each_other_with_the_right_determinant(edge: float | None) -> None:
    coordinates = Coordinates([-1.0, 0.0, -INF, -INF], [3.0, INF, INF, 2.0], edge=edge)
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(200, 4, generator=generator, dtype=torch.float64) * torch.tensor([4.0, 3.0, 1.0, 1.0])
    theta = theta + torch.tensor([-1.0, 0.0, -5.0, 1.0])
    z, ladj = coordinates.fit(theta)(theta)
    back, inverse = coordinates.outwards(z)
    assert torch.allclose(back, theta, atol=1e-12) and torch.allclose(ladj, -inverse, atol=1e-10)
    assert torch.allclose(z.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-10) and torch.allclose(
        z.std(0), torch.ones(4).double()
    )
    jacobian = torch.autograd.functional.jacobian(lambda row: coordinates(row[None])[0][0], theta[0])
    assert float(jacobian.det().abs().log()) == pytest.approx(float(ladj[0]), abs=1e-9)


@pytest.mark.parametrize("edge", [0.1, None])
def test_no_z_leaves_the_bounds(edge: float | None) -> None:
    coordinates = Coordinates([-1e-3, 5.0], [1e3, INF], edge=edge)
    far = torch.tensor([[-1e6, -1e6], [1e6, 1e2], [-40.0, 0.0], [40.0, 3.0]])
    theta, ladj = coordinates.outwards(far)
    assert coordinates.contains(theta).all() and coordinates.contains(theta.float().double().clamp(-1e-3, None)).all()
    assert not ladj.isnan().any() and not coordinates(theta)[0].isnan().any()


def test_a_bend_at_the_edge_leaves_the_middle_straight_and_the_probit_makes_normals() -> None:
    middle = torch.linspace(-0.6, 0.6, 7, dtype=torch.float64).unsqueeze(1)
    assert torch.allclose(Coordinates([-1.0], [1.0], edge=0.05)(middle)[0], middle, atol=1e-4)
    expected = torch.distributions.Normal(0.0, 1.0).icdf(0.5 * (middle + 1))
    assert torch.allclose(Coordinates([-1.0], [1.0], edge=None)(middle)[0], expected)


def test_coordinates_are_recorded_and_stay_in_double_precision() -> None:
    coordinates = Coordinates([0.0, -INF], [0.1, INF], edge=0.2)
    again = build(configuration(coordinates))
    assert torch.equal(again.high, coordinates.high) and again.edge == 0.2
    assert coordinates.float().high.dtype == torch.float64 and float(coordinates.high[0]) == 0.1


def test_bounds_of_supports() -> None:
    positive = constraints.independent(constraints.greater_than(2.0), 1)
    assert bounds_of(positive, 2) == ([2.0, 2.0], [INF, INF])
    assert bounds_of(constraints.real_vector, 1) == ([-INF], [INF])
    mixed = constraints.cat([constraints.unit_interval, constraints.real], -1, [2, 1])
    assert bounds_of(mixed, 3) == ([0.0, 0.0, -INF], [1.0, 1.0, INF])
    with pytest.raises(UserError, match="no product of intervals"):
        bounds_of(constraints.simplex, 3)


def test_wrong_bounds() -> None:
    for low, high, edge, message in (([1.0], [0.0], 0.1, "as many lower"), ([0.0], [1.0], 2.0, "share of half")):
        with pytest.raises(UserError, match=message):
            Coordinates(low, high, edge=edge)


def test_scaling_ignores_what_is_missing() -> None:
    values = torch.tensor([[[1.0], [3.0]], [[5.0], [torch.nan]]])
    mask = torch.tensor([[True, True], [True, False]])
    found = Scaling((1,), of_set=True).fit({"observations": values, "mask": mask})
    assert float(found.mean) == 3.0 and float(found.scale) == pytest.approx(2.0)
    scaled = found({"observations": values, "mask": mask})["observations"]
    assert scaled.flatten().tolist() == pytest.approx([-1.0, 0.0, 1.0, 0.0])
    constant = Scaling((2,)).fit(torch.tensor([[1.0, 7.0], [2.0, 7.0]]))
    assert constant(torch.tensor([[1.5, 7.0]])).tolist() == [[0.0, 0.0]]


def test_the_distance_is_one_at_the_outermost_permille() -> None:
    """Share of fresh simulations beyond 1: 0.001 of 20000, 5 sd of the count and of the quantile."""
    generator = torch.Generator().manual_seed(0)
    root = torch.tensor([[1.0, 0.0], [3.0, 0.1]])
    measure = SimulationDistance(2).fit(torch.randn(20000, 2, generator=generator) @ root.T)
    fresh = torch.randn(20000, 2, generator=generator) @ root.T
    share = float((measure.distance(fresh.double()) > measure.unit).double().mean())
    assert share == pytest.approx(0.001, abs=5 * math.sqrt(2 * 0.001 / 20000))
    # near in every coordinate, but far from the correlation
    assert float(measure(torch.tensor([[1.0, -1.0]]))) > 3


def test_what_never_varied_is_seen_when_it_does() -> None:
    """Entries that were constant, or copies of others, in all simulations: the observation that leaves them is far."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(2000, 3, generator=generator)
    y[:, 1], y[:, 2] = 7.0, 3 * y[:, 0]
    scaling = Scaling((3,)).fit(y)
    measure = SimulationDistance(3).fit(scaling(y))

    def distance(*values: float) -> float:
        return float(measure(scaling(torch.tensor([values]))))

    assert distance(0.5, 7.0, 1.5) < 1
    assert distance(0.5, 107.0, 1.5) > 3 and distance(0.5, 7.0, 4.5) > 3
    constant = SimulationDistance(1).fit(torch.zeros(50, 1))
    assert float(constant(torch.zeros(1, 1))) == 0 and float(constant(torch.ones(1, 1))) > 3


def test_embeddings_find_their_features_and_refuse_other_shapes() -> None:
    found = Embedded((3, 2), Perceptron(6, 4, (8,)))
    assert found.features == 4 and found(torch.zeros(7, 5, 3, 2)).shape == (7, 5, 4)
    assert build(configuration(found)).features == 4
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 3, 2\)"):
        found(torch.zeros(7, 6))
    with pytest.raises(UserError, match="does not record"):
        configuration(Embedded((2,), torch.nn.Linear(2, 2)))
    with pytest.raises(UserError, match="for 2 rows"):
        Embedded((3, 2), torch.nn.Identity())
    assert Tokens(2, 3)(torch.ones(4, 2, 3)).shape == (4, 8)
