"""Another schedule for a trained field."""

from __future__ import annotations

from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.field import Field
from sciflow.transport.guidance.base import Guidance
from sciflow.transport.paths.base import AffinePath

__all__ = ["Rescheduled"]


class Rescheduled(Guidance):
    r"""Follows a field learned on one affine path along another one, without training.

    Affine paths differ by a change of time and a scale: with tau(t) where the old a / s is the new one and
    c = |(a, s)_old(tau)| / |(a, s)_new(t)|, the points c x_t are those of the old path at tau, and both have the same
    E[x_0 | .] and E[x_1 | .]. So v_new(t, x) = a'(t) E[x_1 | c x] + s'(t) E[x_0 | c x], which is the chain rule without its
    quotients. The map from base to data and its density stay the same; the work is spread anew over time.

    Arguments:
        path: the new path.

    Raises `UserError` when applied to a field whose path is not affine, and for paths that leave a space with walls.

    Source: Multisample Flow Matching, Pooladian et al. 2023, arXiv 2304.14772 (scale-time transformations); Elucidating the
    Design Space of Diffusion-Based Generative Models, Karras et al. 2022, arXiv 2206.00364.
    """

    def __init__(self, path: AffinePath) -> None:
        super().__init__()
        if not isinstance(path, AffinePath):
            raise UserError(f"cannot reschedule to {path!r}: an affine path is needed, such as Linear or VariancePreserving")
        self.path = path

    def forward(self, field: Field) -> Field:
        if not isinstance(field.path, AffinePath):
            raise UserError(f"cannot reschedule from {field.path!r}: an affine path is needed, such as Linear")
        if field.space.walls and not (field.path.convex and self.path.convex):
            raise UserError(f"{self.path!r} leaves {field.space!r} on its way: reschedule to a path such as Polynomial")
        return _RescheduledField(field, field.path, self.path)


class _RescheduledField(Field):
    def __init__(self, field: Field, old: AffinePath, path: AffinePath) -> None:
        self.field, self.old, self.new = field, old, path
        self.path = path
        self.space, self.mask = field.space, field.mask
        self.no_score, self.moved, self.shifts = field.no_score, field.moved, field.shifts  # the ends are the same
        self.tells_endpoint = field.tells_endpoint or not old.lingers

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.velocity_and_noise(t, x)[0]

    def velocity_and_noise(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        tau, point = self._old(t, x)
        v, noise = self.field.velocity_and_noise(tau, point)
        _, _, da, ds = self.new.at(t, x)
        # the noise comes without its learned shift, which is on the way all the same
        source = noise if self.shifts[0] is None else noise + self.shifts[0]
        return da * self.old.endpoint_from_velocity(v, point, tau) + ds * source, noise

    def endpoint(self, t: Tensor, x: Tensor) -> Tensor:
        return self.field.endpoint(*self._old(t, x))

    def rows(self, index: Tensor) -> Field | None:
        field = self.field.rows(index)
        return None if field is None else _RescheduledField(field, self.old, self.new)

    def unconditional(self) -> Field:
        return _RescheduledField(self.field.unconditional(), self.old, self.new)

    def _old(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        t = t.to(x.dtype)
        tau = self.old.time(self.new.angle(t))
        scale = self.old.norm(tau) / self.new.norm(t)
        return tau, x * scale.expand(len(x)).reshape(-1, *[1] * (x.dim() - 1))
