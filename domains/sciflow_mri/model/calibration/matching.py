"""Matching the distribution of simulated scans to that of measured ones by two flows."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.noise import normal, uniform
from sciflow.training import fit
from sciflow.transport import FlowMatching, TransportFlow
from sciflow_mri.model.calibration.forward import CoilModel, polynomials
from sciflow_mri.model.calibration.moments import Moments, Whitening, covariance, moments
from sciflow_mri.model.calibration.velocity import PlaceVelocity, complex_rows, place_flow, real_rows

__all__ = ["FlowMatch", "affine_curvature", "affine_slope", "flow_slope"]

_NODES = 24


def affine_slope(given: Tensor, slopes: Tensor) -> Tensor:
    r"""The slope (count,) of L for normal vectors, in closed form, all whitened by the measured covariance:

        L = sum_r int_0^1 (1 - t) / t^2  [tr K_t - log det K_t - C] dt,   K_t = (t^2 K + (1 - t)^2) / (t^2 + (1 - t)^2).

    It is zero where K(theta) is the measured covariance.
    """
    t, weight = _nodes(given.device)
    values, bases = torch.linalg.eigh(given)
    t, weight = t[:, None, None], weight[:, None, None]
    one, simulated = t.square() + (1 - t).square(), t.square() * values + (1 - t).square()
    rate = (weight * (1 - t) * (1 / one - 1 / simulated)).sum(0)  # omega t^2 = 1 - t
    return torch.einsum("rc,krcc->k", rate.to(slopes.dtype), bases.mH @ slopes @ bases).real


def affine_curvature(given: Tensor, slopes: Tensor) -> Tensor:
    r"""The Fisher metric (count, count) of L for normal vectors: int (1 - t) t^2 tr(K_t^-1 dK K_t^-1 dK) dt, summed over r."""
    t, weight = _nodes(given.device)
    values, bases = torch.linalg.eigh(given)
    t, weight = t[:, None, None, None], weight[:, None, None, None]
    simulated = t.square() * values.unsqueeze(-1) + (1 - t).square()
    share = (weight * (1 - t) * t.square() / (simulated * simulated.mT)).sum(0).sqrt()
    inner = (share * (bases.mH @ slopes @ bases)).flatten(1)
    return (inner @ inner.mH).real


def flow_slope(
    model: CoilModel, whitening: Whitening, images: Tensor, theta: Tensor, simulated: TransportFlow, measured: TransportFlow, *,
    seed: int, remainder: bool = False,
) -> Tensor:  # fmt: skip
    r"""A draw of the slope of L, see `FlowMatch`: sum_r E (w - v)(z_t, t, r) . dz / d theta, w and v not differentiated.

    One t, noise and common phase for each image and place. With `remainder`, of the networks' parts of w and v alone.
    """
    theta = theta.detach().requires_grad_()
    z = _whitened(model, whitening, images, theta, seed)
    rows, places = len(images), model.places
    noise = normal(seed, "calibration bridge", torch.arange(rows * places, device=z.device), 2 * model.coils)
    t = uniform(seed, "calibration times", torch.arange(rows * places, device=z.device), 1)[:, 0]
    flat = real_rows(z).flatten(0, 1)
    place = torch.arange(places, device=z.device).repeat(rows)
    with torch.no_grad():
        x = (t.unsqueeze(1) * flat + (1 - t).unsqueeze(1) * noise).float()
        found = [_velocity(flow, x, t.float(), place, remainder) for flow in (simulated, measured)]
        difference = (found[0] - found[1]).double()
    (slope,) = torch.autograd.grad((difference * flat).sum() / rows, theta)
    return slope


@dataclass
class FlowMatch:
    r"""Distribution matching on coil vectors: two flows and the parameters, in turn.

    z = W_r m are the coil vectors of place r, whitened by the measured covariance and turned by a random phase (which images
    are free to have), p their distribution over measured scans, q_theta that over simulated ones. With z_t = t z + (1 - t) n,

        L(theta) = sum_r int_0^1 omega(t) KL(q_theta,t,r || p_t,r) dt,      omega = (1 - t) / t^2.

    On this path the score is s = (t v - z_t) / (1 - t) for the velocity v, so that with v of p, w of q_theta,

        dL / d theta = sum_r int omega E (s_q - s_p)(z_t) . t dz / d theta dt = sum_r E_t,z (w - v)(z_t, t, r) . dz / d theta:

    the derivative of log q_theta itself has mean zero, and omega is chosen such that no power of t is left. v is learned by
    flow matching on measured scans and w on those simulated at theta, from the weights of v on; both have their affine part in
    closed form (`PlaceVelocity`), whose share of the slope is computed without sampling (`affine_slope`), so that normal data
    are matched by covariances exactly. theta makes damped Newton steps with `affine_curvature`, both flows learn on in every
    round, and theta is averaged over the second half of the rounds, since networks that learn keep it in motion. A prior on
    theta counts as much as in `match_moments`.

    Source: Unsupervised Imaging Inverse Problems with Diffusion Distribution Matching, Meanti, Ryckeboer, Arbel and Mairal
    2025, arXiv 2506.14605; the gradient is that of Diff-Instruct, Luo et al. 2023, arXiv 2305.18455. Those networks see whole
    patches of pixels; here they see one coil vector and its place, and the parameters are few.

    Arguments:
        measured: v, learned before; it is set by `run`.
        hidden: widths of the networks; () leaves the affine part alone.
        affine: False leaves everything to the networks, as in the paper: both flows keep K = 1.
        epochs: of the first training of v; `refresh` those of v and w in each round.
    """

    model: CoilModel
    whitening: Whitening
    hidden: tuple[int, ...] = (64, 64)
    affine: bool = True
    epochs: int = 10
    refresh: int = 1
    rounds: int = 6
    steps: int = 2
    seed: int = 0
    measured: TransportFlow | None = None

    def __post_init__(self) -> None:
        self.rounds, self.steps = integer("rounds", self.rounds, 1, 10_000), integer("steps", self.steps, 1, 1000)

    def run(self, vectors: Tensor, images: Tensor, theta: Tensor) -> tuple[Tensor, list[Tensor]]:
        """theta, and its value after each round, from measured vectors (N, places, C) and complex images (N', H, W)."""
        z = self.whitening(vectors)
        v = copy.deepcopy(self.measured) if self.measured is not None else self._fresh()
        own = covariance(z)  # not 1 for a resample
        if self.affine:
            _place(v).assume(own)
        if self.measured is None and self.hidden:
            self._learn(v, z, self.epochs, 0)
        w, path = copy.deepcopy(v), []
        prior = self.model.precision / len(vectors)
        t, weight = _nodes()
        one = float((weight * (1 - t) * t.square() / (t.square() + (1 - t).square()).square()).sum())  # that of K = 1
        root = torch.linalg.cholesky(own)  # whitens by the resample: affine parts are exact in its own coordinates
        for number in range(1, self.rounds + 1):
            if self.hidden:
                if self.affine:
                    _place(w).assume(self._moments(images, theta).covariance)
                with torch.no_grad():
                    simulated = _whitened(self.model, self.whitening, images, theta, self.seed + 1000 * number)
                self._learn(v, z, self.refresh, number)
                self._learn(w, simulated, self.refresh, number)
            for step in range(self.steps):
                found = self._moments(images, theta)
                inner = Moments(_under(found.covariance, root), _under(found.slopes, root))
                slope = one * prior * theta + (affine_slope(*inner) if self.affine else 0.0)
                if self.hidden:
                    seed = self.seed + 1000 * number + step + 1
                    slope = slope + flow_slope(self.model, self.whitening, images, theta, w, v, seed=seed, remainder=True)
                change = torch.linalg.solve(affine_curvature(*inner) + one * torch.diag(prior + 1e-12), slope)
                theta = theta - change / max(1.0, float(change.abs().max()) / 0.5)
            path.append(theta)
        self.measured = v
        return torch.stack(path[len(path) // 2 :]).mean(0), path

    def _fresh(self) -> TransportFlow:
        model = self.model
        low = polynomials(model.grid, 2)[1:].flatten(1).T.to(model.maps.device)
        loud = self.whitening.loudness.log()
        loud = (loud - loud.mean(0)) / loud.std(0).clamp_min(1e-6)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return place_flow(model.coils, torch.cat([low, loud[:, :1]], 1).float(), hidden=self.hidden).to(model.maps.device)

    def _moments(self, images: Tensor, theta: Tensor) -> Moments:
        found = moments(self.model, images, theta)
        return Moments(self.whitening.covariance(found.covariance), self.whitening.covariance(found.slopes))

    def _learn(self, flow: TransportFlow, z: Tensor, epochs: int, number: int) -> None:
        scans, places = z.shape[:2]
        turn = (
            2
            * torch.pi
            * uniform(self.seed, "calibration phases", torch.arange(scans, device=z.device) + number * scans, places)
        )
        turn = turn.unsqueeze(-1)
        rows = real_rows(z * torch.polar(torch.ones_like(turn), turn)).flatten(0, 1).float()
        place = torch.arange(places, device=z.device).repeat(scans).unsqueeze(1).float()
        fit(
            flow, (rows, place), objective=FlowMatching(), validation=0.0, epochs=epochs, batch_size=512, ema=0.99,
            learning_rate=5e-3 if number == 0 else 2e-3, seed=self.seed + number, progress=False,
        )  # fmt: skip


def _nodes(device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy((nodes + 1) / 2).to(device), torch.from_numpy(weights / 2).to(device)


def _under(given: Tensor, root: Tensor) -> Tensor:
    half = torch.linalg.solve_triangular(root, given, upper=False)
    return torch.linalg.solve_triangular(root, half.mH, upper=False).mH


def _whitened(model: CoilModel, whitening: Whitening, images: Tensor, theta: Tensor, seed: int) -> Tensor:
    """Simulated z (N', places, C) with noise and random common phases, differentiable in theta."""
    clean = model.with_maps(images, model.maps_at(theta, common=True))
    index = torch.arange(len(images), device=clean.device)
    white = complex_rows(normal(seed, "calibration noise", index, 2 * model.places * model.coils)).reshape(clean.shape)
    turn = 2 * torch.pi * uniform(seed, "calibration phases", index, model.places).unsqueeze(-1)
    return whitening(clean * torch.polar(torch.ones_like(turn), turn) + theta[0].exp() * white)


def _velocity(flow: TransportFlow, x: Tensor, t: Tensor, place: Tensor, remainder: bool) -> Tensor:
    network = _place(flow)
    return network.remainder(x, t, place) if remainder else network(x, t, place.unsqueeze(1).float())[:, 0]


def _place(flow: TransportFlow) -> PlaceVelocity:
    network = flow.network
    assert isinstance(network, PlaceVelocity)
    return network
