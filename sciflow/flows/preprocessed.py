"""A flow over physical units: preprocessing and an inner flow as one model."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.flows.base import Flow
from sciflow.flows.condition import Condition, Encoder
from sciflow.preprocessing import Preprocessing

__all__ = ["Preprocessed"]


class Preprocessed(Flow):
    r"""p(y | c) in physical units from a flow p(z | c') over preprocessed ones.

        log p(y | c) = log p_flow(z(y) | c'(c)) + log |det dz/dy|

    y is float64 and dequantised: where a feature has a point mass, the density is that of the *dequantised* variable
    (see `sciflow.preprocessing.Preprocessing.dequantise`). The inner flow works in its own precision.

    Arguments:
        flow: the inner flow over D features.
        features: fitted preprocessing of the D features, or None.
        condition: fitted preprocessing of a tensor condition (..., C), or None.

    >>> from sciflow.flows import LayeredFlow
    >>> preprocessing = Preprocessing(1).fit(torch.tensor([[1.0], [3.0]]))
    >>> flow = Preprocessed(LayeredFlow(1), features=preprocessing)
    >>> flow().log_prob(torch.tensor([2.0], dtype=torch.float64))
    tensor(-0.9189, dtype=torch.float64)
    """

    def __init__(self, flow: Flow, features: Preprocessing | None = None, condition: Preprocessing | None = None) -> None:
        encoder = flow.encoder if condition is None else _PreprocessedCondition(flow.encoder, condition)
        super().__init__(tuple(flow.event_shape), base=flow.base, encoder=encoder, maskable=flow.maskable)
        if features is not None and flow.event_shape != (features.features,):
            raise ValueError(f"the flow has event shape {tuple(flow.event_shape)}, the preprocessing ({features.features},)")
        self.flow = flow
        self.preprocessing = features

    @property
    def has_point_masses(self) -> bool:
        """Whether some feature has a value with positive probability: then `quantise` belongs to its draws."""
        return self.preprocessing is not None and self.preprocessing.has_point_masses

    def dequantise(self, x: Tensor, index: Tensor, seed: int = 0, mask: Tensor | None = None) -> Tensor:
        """y (N, D), of which this flow is the density: point masses of x are spread, the noise of a row depending on
        (seed, index, feature) alone; see `Preprocessing.dequantise`. Without preprocessing x in the flow's own dtype."""
        return x.to(self._dtype(x)) if self.preprocessing is None else self.preprocessing.dequantise(x, index, seed, mask)

    def quantise(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (N, D) from draws y: the bands of point masses go back to the exact values. y itself if there is none."""
        if self.preprocessing is None or not self.preprocessing.has_point_masses:
            return y
        return self.preprocessing.quantise(y, mask)

    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.preprocessing is None:
            return self.flow.to_latent(x, context, mask)
        z, ladj = self.preprocessing(x, mask)
        latent, inner = self.flow.to_latent(z.to(self._dtype(x)), context, mask)
        return latent, ladj + inner

    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        inner, ladj = self.flow.to_data(z.to(self._dtype(z)), context, mask)
        if self.preprocessing is None:
            return inner, ladj
        y, outer = self.preprocessing.inverse(inner, mask)
        return y, ladj + outer

    def _dtype(self, fallback: Tensor) -> torch.dtype:
        parameter = next(self.flow.parameters(), None)
        return fallback.dtype if parameter is None else parameter.dtype


class _PreprocessedCondition(Encoder):
    """Preprocesses a tensor condition in float64 before the flow's own encoder sees it."""

    def __init__(self, encoder: Encoder, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, preprocessing
        self.features = encoder.features

    def forward(self, condition: Condition) -> Tensor | None:
        expected = self.preprocessing.features
        if not isinstance(condition, Tensor) or condition.dim() < 1 or condition.shape[-1] != expected:
            return self.encoder(condition)  # which says what is wrong with it
        rows = condition.reshape(-1, expected)
        z, _ = self.preprocessing(rows)
        reference = next(self.encoder.parameters(), None)
        z = z if reference is None else z.to(reference.dtype)
        return self.encoder(z.reshape(condition.shape))
