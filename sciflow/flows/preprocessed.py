"""A flow over physical units: preprocessing and an inner flow as one model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sciflow.flows.base import Flow
from sciflow.flows.condition import Condition, Encoder
from sciflow.flows.draws import Draws
from sciflow.flows.wrapper import Wrapper
from sciflow.preprocessing import Preprocessing

__all__ = ["Preprocessed"]


class Preprocessed(Wrapper):
    r"""p(y | c) in physical units from a flow p(z | c') over preprocessed ones.

        log p(y | c) = log p_flow(z(y) | c'(c)) + log |det dz/dy|

    y is float64 and dequantised: where a feature has a point mass, the density is that of the *dequantised* variable
    (see `sciflow.preprocessing.Preprocessing.dequantise`). The inner flow works in its own precision.

    Arguments:
        flow: the inner flow over D features.
        features: fitted preprocessing of the D features, or None.
        condition: fitted preprocessing of a tensor condition (..., C), or None.

    >>> import torch
    >>> from sciflow.flows import LayeredFlow
    >>> preprocessing = Preprocessing(1).fit(torch.tensor([[1.0], [3.0]]))
    >>> flow = Preprocessed(LayeredFlow(1), features=preprocessing)
    >>> flow().log_prob(torch.tensor([2.0], dtype=torch.float64))
    tensor(-0.9189, dtype=torch.float64)
    """

    def __init__(self, flow: Flow, features: Preprocessing | None = None, condition: Preprocessing | None = None) -> None:
        encoder = flow.encoder if condition is None else _PreprocessedCondition(flow.encoder, condition)
        super().__init__(flow, tuple(flow.event_shape), encoder)
        if features is not None and flow.event_shape != (features.features,):
            raise ValueError(f"the flow has event shape {tuple(flow.event_shape)}, the preprocessing ({features.features},)")
        self.preprocessing = features

    @property
    def has_point_masses(self) -> bool:
        """Whether some feature has a value with positive probability: then `quantise` belongs to its draws."""
        return self.preprocessing is not None and self.preprocessing.has_point_masses

    def dequantise(self, x: Tensor, index: Tensor, seed: int = 0, mask: Tensor | None = None) -> Tensor:
        """y (N, D), of which this flow is the density: point masses of x are spread, the noise of a row depending on
        (seed, index, feature) alone; see `Preprocessing.dequantise`. Without preprocessing x in the flow's own dtype."""
        return x.to(self.inner_dtype(x)) if self.preprocessing is None else self.preprocessing.dequantise(x, index, seed, mask)

    def quantise(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (N, D) from draws y: the bands of point masses go back to the exact values. y itself if there is none."""
        if self.preprocessing is None or not self.preprocessing.has_point_masses:
            return y
        return self.preprocessing.quantise(y, mask)

    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.preprocessing is None:
            return self.flow.to_latent(x, context, mask)
        z, ladj = self.preprocessing(x, mask)
        latent, inner = self.flow.to_latent(z.to(self.inner_dtype(x)), context, mask)
        return latent, ladj + inner

    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        inner, ladj = self.flow.to_data(z.to(self.inner_dtype(z)), context, mask)
        if self.preprocessing is None:
            return inner, ladj
        y, outer = self.preprocessing.inverse(inner, mask)
        return y, ladj + outer

    def outwards(self, draws: Draws, mask: Tensor | None) -> Draws:
        if self.preprocessing is None:
            return draws
        y, outer = self.preprocessing.inverse(draws.x, mask)
        return draws._replace(x=y, log_prob=None if draws.log_prob is None else draws.log_prob - outer)

    def inside(self, batch: Any) -> tuple[Flow, Any]:
        if isinstance(self.encoder, _PreprocessedCondition):
            batch = batch._replace(condition=self.encoder.preprocessed(batch.condition))
        if self.preprocessing is not None:
            dtype = self.inner_dtype(batch.x)
            x, source = (
                None if rows is None else self.preprocessing(rows, batch.mask)[0].to(dtype) for rows in (batch.x, batch.source)
            )
            batch = batch._replace(x=x, source=source)
        return self.flow, batch


class _PreprocessedCondition(Encoder):
    """Preprocesses a tensor condition in float64 before the flow's own encoder sees it."""

    def __init__(self, encoder: Encoder, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, preprocessing
        self.features = encoder.features

    def forward(self, condition: Condition) -> Tensor | None:
        return self.encoder(self.preprocessed(condition))

    def preprocessed(self, condition: Condition) -> Condition:
        """What the flow's own encoder sees."""
        expected = self.preprocessing.features
        if not isinstance(condition, Tensor) or condition.dim() < 1 or condition.shape[-1] != expected:
            return condition  # the encoder says what is wrong with it
        z, _ = self.preprocessing(condition.reshape(-1, expected))
        reference = next(self.encoder.parameters(), None)
        z = z if reference is None else z.to(reference.dtype)
        return z.reshape(condition.shape)
