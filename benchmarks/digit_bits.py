"""Bits per dimension of handwritten digits (1x8x8, 17 grey levels) by a continuous flow, beside simple densities.

    python benchmarks/digit_bits.py [--epochs 40] [--seeds 3]

1437 images train and 360 test (of scikit-learn's 1797, another split per seed). All numbers but that of the pixel
table are bounds: E_u[-log2 p(x + u) ...] / 64 with one draw of the noise per image. Writes digit_bits.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from timing import machine, report
from torch import Tensor

import sciflow
from sciflow.flows import Dequantised, UniformNoise, Variational
from sciflow.networks import UNet
from sciflow.training import Batch, DiscreteLikelihood
from sciflow.transport.divergence import Hutchinson
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.steppers import FixedStep

LEVELS, SIZE, TRAIN = 17, 64, 1437


def split(seed: int) -> tuple[Tensor, Tensor]:
    images = torch.tensor(load_digits().images).unsqueeze(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:TRAIN]], images[order[TRAIN:]]


def pixel_table(train: Tensor, test: Tensor) -> float:
    """Independent pixels with a pseudo-count of one."""
    counts = torch.ones(SIZE, LEVELS, dtype=torch.float64)
    counts.scatter_add_(1, train.flatten(1).T.long(), torch.ones(SIZE, len(train), dtype=torch.float64))
    p = counts / counts.sum(1, keepdim=True)
    return float(-p.log2().gather(1, test.flatten(1).T.long()).mean())


def noisy(images: Tensor) -> Tensor:
    flat = images.flatten(1).double()
    return flat + torch.rand(flat.shape, dtype=torch.float64)


def gaussian(train: Tensor, test: Tensor) -> float:
    """A full covariance, of values with uniform noise."""
    x = noisy(train)
    density = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    return float(-density.log_prob(noisy(test)).mean() / SIZE / math.log(2))


def kernel_density(train: Tensor, test: Tensor) -> float:
    """Gaussian kernels, their width chosen on the last 200 training images."""
    fit, choose = noisy(train[:-200]), noisy(train[-200:])

    def bits(centres: Tensor, x: Tensor, width: float) -> float:
        square = torch.cdist(x, centres).square()
        log_p = torch.logsumexp(-0.5 * square / width**2, 1) - math.log(len(centres))
        log_p = log_p - SIZE * (math.log(width) + 0.5 * math.log(2 * math.pi))
        return float(-log_p.mean() / SIZE / math.log(2))

    widths = [0.5 * 1.2**k for k in range(12)]
    best = min(widths, key=lambda width: bits(fit, choose, width))
    return bits(noisy(train), noisy(test), best)


def flows(train: Tensor, test: Tensor, epochs: int) -> dict[str, float]:
    """Flow matching with uniform noise; then the noise alone is trained for the frozen flow."""
    inner = TransportFlow(
        (1, 8, 8),
        network=UNet((1, 8, 8), widths=(16, 32)),
        stepper=FixedStep(8, method="bogacki_shampine5"),
        divergence=Hutchinson(1, seed=0),
    )
    flow = Dequantised(inner, levels=LEVELS, noise=UniformNoise())
    sciflow.fit(
        flow, train, objective=FlowMatching(), epochs=epochs, batch_size=64, learning_rate=3e-3, ema=0.99, progress=False
    )
    found = {}
    with torch.no_grad():
        found["flow, uniform noise"] = float(flow.bits_per_dimension(test, seed=0).mean())
    coarse = inner.sampling(stepper=FixedStep(3, method="bogacki_shampine5"), divergence=Hutchinson(1)).requires_grad_(False)
    noise = Variational((1, 8, 8), hidden=(128,))
    learned, objective = Dequantised(coarse, levels=LEVELS, noise=noise), DiscreteLikelihood()
    optimiser = torch.optim.Adam(noise.parameters(), 3e-3)
    for _ in range(4 * epochs):
        rows = torch.randint(0, len(train), (64,))
        optimiser.zero_grad()
        objective(learned, Batch(train[rows])).mean().backward()
        optimiser.step()
    with torch.no_grad():
        exact = Dequantised(inner, levels=LEVELS, noise=noise)
        found["flow, variational noise"] = float(exact.bits_per_dimension(test, seed=0).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[float]] = {}
    start = time.process_time()
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        train, test = split(seed)
        found = {
            "independent pixels, exact": pixel_table(train, test), "Gaussian": gaussian(train, test),
            "kernel density": kernel_density(train, test), **flows(train, test, options.epochs),
        }  # fmt: skip
        for name, bits in found.items():
            rows.setdefault(name, []).append(bits)
    took = (time.process_time() - start) / options.seeds
    lines = [
        "# Bits per dimension of digits",
        "",
        f"{machine()}. scikit-learn's digits, 1x8x8, {LEVELS} grey levels, {TRAIN} for training and 360 for testing, "
        f"{options.seeds} seeds (split, weights, noise); means and standard deviations over seeds. U-Net (16, 32), flow "
        f"matching for {options.epochs} epochs, one unbiased Hutchinson probe per image, "
        f"{took:.0f} s of processor time per seed on one thread.",
        "",
        "| density | bits per dimension, test | spread |",
        "|---|---|---|",
    ]
    for name, bits in rows.items():
        spread = statistics.stdev(bits) if len(bits) > 1 else math.nan
        lines.append(f"| {name} | {statistics.mean(bits):.3f} | {spread:.3f} |")
    report("\n".join(lines) + "\n", options.output)


if __name__ == "__main__":
    main()
