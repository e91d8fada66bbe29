"""A flow whose weights are a velocity."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.distributions import Base
from sciflow.errors import UserError
from sciflow.flows import Encoder, Flow
from sciflow.flows.condition import ConditionSpec
from sciflow.flows.draws import Draws
from sciflow.networks.default import default_network
from sciflow.networks.time_network import TimeNetwork, expand_time
from sciflow.transport.bases.manifold import base_on
from sciflow.transport.bases.shift import Shift
from sciflow.transport.bases.sources import Sources
from sciflow.transport.bound import BoundField
from sciflow.transport.compatibility import check_flow, check_kinds, check_points, check_whole
from sciflow.transport.divergence import Divergence, Exact, LogDensity
from sciflow.transport.field import Field
from sciflow.transport.folded import FoldedField
from sciflow.transport.guidance.base import Guidance, guidance_list
from sciflow.transport.heads.base import Head
from sciflow.transport.heads.velocity import Velocity
from sciflow.transport.paths.base import Path
from sciflow.transport.paths.geodesic import Geodesic
from sciflow.transport.paths.linear import Linear
from sciflow.transport.spaces.base import Euclidean, Space
from sciflow.transport.spaces.network import OnSpace, mlp_on
from sciflow.transport.steppers.base import Solution, Stepper
from sciflow.transport.steppers.default import default_stepper

__all__ = ["TransportFlow"]


class TransportFlow(Flow):
    r"""dx/dt = v(x, t; condition), from the base at t = 0 to the data at t = 1:

        log p(x_1) = log q(x_0) - \int_0^1 div v dt.

    Arguments:
        event_shape, condition, base, encoder, maskable: as for every `Flow`.
        network: a `TimeNetwork`, or arguments of `TimeMLP` such as {"hidden": (128, 128)}; by default what the event
            shape asks for, see `default_network`.
        path, head, space: what joins the endpoints, what the output means, where points live. On a curved space the path is
            geodesic and the base uniform unless others are given, and the arguments of a network make a smooth one (`OnSpace`).
        stepper, divergence, guidance: how the field is followed; they can be changed after training, see `sampling`.
        target_shift: a `Shift` of the data by the condition, so that the path to them is shorter; undone after sampling.
        unconditional: learn the field without the condition too (a learned context in its place): for
            classifier-free guidance and objectives with `drop_condition`.

    What does not fit together is refused with the reason, see `sciflow.transport.compatibility`.
    """

    def __init__(
        self,
        event_shape: int | tuple[int, ...],
        condition: ConditionSpec = 0,
        *,
        network: TimeNetwork | Mapping[str, Any] | None = None,
        base: Base | None = None,
        path: Path | None = None,
        head: Head | None = None,
        space: Space | None = None,
        stepper: Stepper | None = None,
        divergence: Divergence | None = None,
        guidance: Sequence[Guidance] = (),
        target_shift: Shift | None = None,
        unconditional: bool = False,
        encoder: Encoder | None = None,
        maskable: bool = False,
    ) -> None:
        check_kinds(
            network=(network, (TimeNetwork, Mapping)), base=(base, Base), path=(path, Path), head=(head, Head),
            space=(space, Space), stepper=(stepper, Stepper), divergence=(divergence, Divergence),
            target_shift=(target_shift, Shift),
        )  # fmt: skip
        space = Euclidean() if space is None else space
        self.default_base = base is None
        base = base_on(space, event_shape) if base is None else base
        super().__init__(event_shape, condition, base=base, encoder=encoder, maskable=maskable)
        self.space: Space = space
        self.path: Path = ((Linear() if space.straight else Geodesic()) if path is None else path).on(space)
        self.head: Head = Velocity() if head is None else head
        self.stepper: Stepper = default_stepper(self.head, space) if stepper is None else stepper
        self.divergence: Divergence = Exact() if divergence is None else divergence
        self.guidance = guidance_list(guidance)
        if not isinstance(network, TimeNetwork):
            where = self.space if self.head.tangent else Euclidean()
            shape, features, channels = tuple(self.event_shape), self.encoder.features, self.head.channels
            if where.euclidean:
                network = default_network(shape, features, channels, maskable=maskable, arguments=network)
            else:
                network = mlp_on(where, shape, features, channels, **(network or {}))
        self.network = network
        wanted = (self.event_shape, self.encoder.features, self.head.channels)
        found = (network.event_shape, network.context, network.channels)
        if wanted != found:
            raise UserError(
                f"the network has event shape {tuple(found[0])}, {found[1]} context features and {found[2]} channels; "
                f"the flow needs {tuple(wanted[0])}, {wanted[1]} and {wanted[2]}"
            )
        self.target_shift = target_shift
        if target_shift is not None and (target_shift.event_shape, target_shift.context) != wanted[:2]:
            raise UserError(
                f"the target shift has event shape {tuple(target_shift.event_shape)}, {target_shift.context} context features; "
                f"the flow needs {tuple(wanted[0])} and {wanted[1]}"
            )
        if unconditional and self.encoder.features == 0:
            raise UserError("unconditional=True needs a flow with a condition: without one it is unconditional already")
        self.null = nn.Parameter(torch.zeros(self.encoder.features)) if unconditional else None
        self.sources = Sources()
        check_flow(self)

    def sampling(self, **changes: Any) -> TransportFlow:
        """The same weights (shared) with another `stepper`, `divergence` or `guidance`.

        After a training with given sources also with another `base`, which then says how they are distributed.
        Raises `UserError` for anything else: that would be another model.
        """
        foreign = sorted(set(changes) - {"stepper", "divergence", "guidance", *(["base"] if self.sources.given else [])})
        if foreign:
            raise UserError(f"sampling() changes stepper, divergence and guidance, not {', '.join(foreign)}")
        self.sources.check(changes.get("base", self.base), self.base)
        other = copy.copy(self)
        other._modules = dict(self._modules)
        object.__setattr__(other, "recorded_arguments", {**self.recorded_arguments, **changes})
        for name, value in changes.items():
            setattr(other, name, guidance_list(value) if name == "guidance" else value)
        check_kinds(stepper=(other.stepper, Stepper), divergence=(other.divergence, Divergence), required=True)
        other.default_base = self.default_base and "base" not in changes
        check_flow(other)
        return other

    def check_mask(self, mask: Tensor) -> None:
        super().check_mask(mask)
        check_whole(self, mask)

    def check_rows(self, batch: Any) -> None:
        """Raises `UserError` if rows of a training set are no points of the space."""
        check_points(self, batch)

    @property
    def no_density(self) -> str | None:
        if not self.stepper.density:
            return f"{self.stepper!r} solves no equation for the log-density"
        if self.head.endpoint_stepping:
            return f"the velocity of the head {self.head!r} is singular at t = 1, where its divergence has no integral"
        if self.space.walls and not isinstance(self.network, OnSpace):
            return f"the network knows nothing of the walls of {self.space!r} and lets mass through: wrap it in OnSpace"
        reasons = [self.no_base, *(getattr(part, "no_density", None) for part in (*self.guidance, self.base))]
        return next((reason for reason in reasons if reason), None)

    @property
    def no_base(self) -> str | None:
        """Why draws of the base are no start, such as those of a default base after a training with sources; else None."""
        return self.sources.reason(self.base) if self.default_base else None

    @property
    def uniforms(self) -> int:
        return self.base.uniforms + self.stepper.uniforms(tuple(self.event_shape))

    def field(self, context: Tensor | None = None, mask: Tensor | None = None) -> Field:
        """The velocity field of rows with this context and mask, guidance included."""
        field: Field = BoundField(self, context, mask)
        for guidance in self.guidance:
            field = guidance(field)  # type: ignore[assignment]
        return field if self.space.euclidean else FoldedField(field)

    def output(
        self, x: Tensor, t: Tensor, context: Tensor | None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        """What the network says at x, t: (B, channels, *event_shape)."""
        return self.network(x, t, context, mask, s)

    def shifted(self, x: Tensor, context: Tensor | None, mask: Tensor | None, sign: int = 1) -> Tensor:
        """Data x (B, *event) where the transport ends, moved by the target shift; with `sign` -1 back to the data."""
        return x if self.target_shift is None else x + sign * self.target_shift(context, mask).to(x.dtype)

    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        solution = self.solve(self.shifted(x, context, mask), context, mask, 1.0, 0.0, density=True)
        assert solution.log_det is not None
        return solution.x, solution.log_det.value

    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        solution = self.solve(z, context, mask, 0.0, 1.0, density=True)
        assert solution.log_det is not None
        return self.shifted(solution.x, context, mask, -1), solution.log_det.value

    def solve(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None, start: float, end: float, *, density: bool,
        uniform: Tensor | None = None,
    ) -> Solution:  # fmt: skip
        """Follow the field; with `density` the log-determinant comes from the same solve."""
        if start >= 1 > end and self.head.endpoint_stepping:
            raise UserError(f"the velocity of the head {self.head!r} is singular at t = 1: nothing leads from data to noise")
        divergence = self.divergence if density else None
        x = x.to(next(self.network.parameters(), x).dtype)
        nowhere = x.isinf().flatten(1).any(1) if density and start > end else None  # infinities would be NaN in the network
        begin = x if nowhere is None else torch.where(expand_time(nowhere, x), 0, x)
        begin = begin if self.space.euclidean else self.space.masked(mask).project(begin)
        solution = self.stepper.solve(self.field(context, mask), begin, start, end, divergence=divergence, uniform=uniform)
        if solution.log_det is None or nowhere is None:
            return solution  # else there is no density outside of the space
        outside = nowhere if self.space.euclidean else ~self.space.contains(x, mask)
        log_det = solution.log_det._replace(value=torch.where(outside, -torch.inf, solution.log_det.value))
        return solution._replace(x=torch.where(expand_time(nowhere, x), x, solution.x), log_det=log_det)

    def from_uniform(self, uniform: Tensor, context: Tensor | None, mask: Tensor | None, *, density: bool = True) -> Draws:
        count = self.base.uniforms
        z = self.base.from_uniform(uniform[:, :count], context, mask)
        rest = uniform[:, count:] if uniform.shape[1] > count else None
        return self.from_base(z, context, mask, density=density, uniform=rest)

    def from_base(
        self, z: Tensor, context: Tensor | None, mask: Tensor | None, *, density: bool = True, uniform: Tensor | None = None
    ) -> Draws:
        if self.no_base is not None:
            raise UserError(f"no draws: {self.no_base}")
        z = z.to(self.reference(context).dtype)
        solution = self.solve(z, context, mask, 0.0, 1.0, density=density, uniform=uniform)
        x = self.shifted(solution.x, context, mask, -1)
        if solution.log_det is None:
            return Draws(x, evaluations=solution.evaluations)
        log_prob = self.base.log_prob(z, context, mask) - solution.log_det.value
        return Draws(x, log_prob, solution.log_det.standard_error, solution.evaluations)

    def log_density(self, x: Tensor, condition: Any = None, mask: Tensor | None = None) -> LogDensity:
        """log p(x | condition) of x (..., *event) with its standard error, that of a stochastic trace included.

        The error is None for an exact trace and NaN where one probe cannot tell. The solver's own error is not in it.
        """
        if self.no_density is not None:
            raise UserError(f"no density: {self.no_density}")
        bound = self(condition) if mask is None else self(condition, mask)
        x, shape = bound.rows(x.to(next(self.network.parameters(), x).dtype))
        context, mask = bound.bound(shape)
        solution = self.solve(self.shifted(bound.present(x, mask), context, mask), context, mask, 1.0, 0.0, density=True)
        assert solution.log_det is not None
        value, error = solution.log_det
        value = self.base.log_prob(solution.x, context, mask) + value
        return LogDensity(value.reshape(shape), None if error is None else error.reshape(shape))

    def extra_repr(self) -> str:
        return f"path={self.path!r}, head={self.head!r}, space={self.space!r}, stepper={self.stepper!r}"
