"""What solver.py compares: own steppers and those of torchdiffeq, zuko and torchode, and a field that counts its calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.transport.field import Field
from sciflow.transport.steppers import Adaptive, FixedStep, Stepper

__all__ = ["Counted", "Follow", "solvers"]

Follow = Callable[[Tensor, float], Tensor]


class Counted(Field):
    """Counts evaluations, in batches (calls) and rows."""

    def __init__(self, field: Field, counter: dict[str, float] | None = None) -> None:
        self.field, self.counter = field, counter if counter is not None else {"calls": 0.0, "rows": 0.0}
        self.path, self.space, self.mask = field.path, field.space, field.mask

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.counter["calls"] += 1
        self.counter["rows"] += len(x)
        return self.field(t, x)

    def rows(self, index: Tensor) -> Field | None:
        field = self.field.rows(index)
        return None if field is None else Counted(field, self.counter)


def own(field: Field, make: Callable[[float], Stepper]) -> Follow:
    return lambda x, level: make(level).solve(field, x, 0.0, 1.0).x


def torchdiffeq_dopri5(field: Field) -> Follow:
    from torchdiffeq import odeint

    times = torch.tensor([0.0, 1.0])
    return lambda x, level: odeint(field, x, times, rtol=level, atol=level / 10, method="dopri5")[-1]


def zuko_dopri5(field: Field) -> Follow:
    from zuko.utils import odeint

    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    return lambda x, level: odeint(field, x, zero, one, rtol=level, atol=level / 10)


def torchode_solver(field: Field, method: str) -> Follow:
    import torchode

    term = torchode.ODETerm(field)  # type: ignore[arg-type]
    step = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[method](term=term)

    def follow(x: Tensor, level: float) -> Tensor:
        controller = torchode.IntegralController(atol=level / 10, rtol=level, term=term)
        adjoint = torchode.AutoDiffAdjoint(step, controller)
        times = torch.tensor([[0.0, 1.0]]).expand(len(x), 2)
        return adjoint.solve(torchode.InitialValueProblem(y0=x, t_eval=times)).ys[:, -1]

    return follow


def solvers(field: Field) -> dict[str, Follow]:
    found = {
        "sciflow Adaptive bogacki_shampine5": own(field, lambda level: Adaptive(level)),
        "sciflow Adaptive tsit5": own(field, lambda level: Adaptive(level, method="tsit5")),
        "sciflow Adaptive dopri5": own(field, lambda level: Adaptive(level, method="dopri5")),
        **{
            f"sciflow FixedStep {name}": own(field, lambda level, name=name: FixedStep(round(1 / level), method=name))  # type: ignore[misc]
            for name in ("midpoint", "rk4", "dopri5", "tsit5", "bogacki_shampine5")
        },
        "torchdiffeq dopri5": torchdiffeq_dopri5(field),
        "zuko dopri45": zuko_dopri5(field),
    }
    try:
        import torchode  # noqa: F401
    except ImportError:
        return found
    return found | {f"torchode {name}": torchode_solver(field, name) for name in ("dopri5", "tsit5")}
