"""Exact endpoint steps against closed forms."""

from __future__ import annotations

import pytest
import torch

from sciflow.transport.flow import TransportFlow
from sciflow.transport.heads import CategoricalEndpoint, Endpoint
from sciflow.transport.paths import Linear, VariancePreserving
from sciflow.transport.steppers.endpoint import EndpointStep
from sciflow.transport.steppers.fixed import FixedStep

from .analytic_paths import AffineMixture

pytestmark = pytest.mark.usefixtures("float64")


def test_an_endpoint_step_is_exact_where_the_endpoint_does_not_move() -> None:
    """Data at one point: E[x1 | x] is that point, and any number of steps, equal or not, is the exact solution."""
    for path in (Linear(), VariancePreserving()):
        network = AffineMixture(path, ((1.0, -2.0),), (0.0,), (1.0,), what="endpoint")
        flow = TransportFlow(2, network=network, path=path, head=Endpoint())
        z = torch.randn(3, 2)
        for steps in (1, 4, [0.0, 0.1, 0.5, 1.0]):
            torch.testing.assert_close(
                EndpointStep(steps).solve(flow.field(), z, 0.0, 1.0).x, network.means[:1, :].expand(3, 2)
            )
            a, s, _, _ = path.coefficients(torch.tensor(0.6))
            half = EndpointStep(steps).solve(flow.field(), z, 0.0, 0.6).x
            torch.testing.assert_close(half, a * network.means[0] + s * z)


@pytest.mark.parametrize("path", [Linear(), VariancePreserving()], ids=repr)
def test_endpoint_steps_are_of_first_order_and_the_deterministic_diffusion_step(path) -> None:
    mixture = AffineMixture(path, what="endpoint")
    flow = TransportFlow(1, network=mixture, path=path, head=Endpoint())
    z = torch.randn(20, 1)
    fine = FixedStep(400, method="rk4").solve(TransportFlow(1, network=AffineMixture(path), path=path).field(), z, 0.0, 1.0).x
    errors = [float((EndpointStep(n).solve(flow.field(), z, 0.0, 1.0).x - fine).abs().max()) for n in (50, 100, 200)]
    assert errors[2] < 0.03 and 1.5 < errors[0] / errors[1] < 2.6 and 1.5 < errors[1] / errors[2] < 2.6
    t, u = torch.tensor(0.25), torch.tensor(0.5)
    a_next, s_next, _, _ = path.coefficients(u)
    q = mixture.quantities(z, t.expand(20))
    x = EndpointStep([0.0, 1.0]).solve(flow.field(), z, 0.25, 0.5).x
    torch.testing.assert_close(x, a_next * q["endpoint"] + s_next * q["noise"])
    torch.testing.assert_close(flow.field().endpoint(t, z), q["endpoint"])


class Vertices(AffineMixture):
    """Logits of the exact posterior over the vertices of a simplex (as `softmax(out)` is the endpoint)."""

    def __init__(self, categories: int = 4) -> None:
        eye = torch.eye(categories).reshape(categories, 1, categories)
        super().__init__(Linear(), eye.tolist(), [0.0] * categories, [1 / categories] * categories)

    def forward(self, x, t, context=None, mask=None, s=None):
        t = t.reshape(-1, 1, 1)
        # -|x - t e_k|^2 / (2 (1 - t)^2) up to what k does not change
        return (t * x / (1 - t).clamp_min(1e-6) ** 2).unsqueeze(1)


def test_categories_end_at_vertices_where_other_solvers_stop_short() -> None:
    """At 8 evaluations each. A Runge-Kutta step combines endpoints with weights outside [0, 1] and leaves the simplex."""
    flow = TransportFlow((1, 4), network=Vertices(), head=CategoricalEndpoint())
    z = torch.randn(1000, 1, 4)

    def end(stepper):
        x = stepper.solve(flow.field(), z, 0.0, 1.0).x
        vertex = torch.nn.functional.one_hot(x.argmax(-1), 4)
        return x, (x - vertex).abs().amax((1, 2)).mean()

    x, off = end(EndpointStep(8))
    assert (x.sum(-1) - 1).abs().max() < 1e-12 and (x >= 0).all()
    assert off < 0.02
    for stepper in (FixedStep(4), FixedStep(4, method="heun"), FixedStep(2, method="rk4")):
        x, other = end(stepper)
        assert other > 0.05 and x.min() < -0.05
    assert end(EndpointStep(40))[1] < 1e-12
