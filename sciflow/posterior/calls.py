"""How often a method asked its target: the currency in which samplers are compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Calls"]


@dataclass
class Calls:
    """Numbers of rows (not of batches) that were evaluated.

    Arguments:
        likelihood: log-likelihoods, or energies; one with its gradient counts here and under `gradient`.
        gradient: gradients of log-densities, and vector-Jacobian products with operators.
        velocity: velocity evaluations of a flow; one with its vector-Jacobian product also counts under `velocity_gradient`.
        velocity_gradient: vector-Jacobian products with a velocity field.
        prior: log-densities of the prior.
        simulator: runs of a simulator.

    >>> calls = Calls()
    >>> calls.likelihood += 100
    >>> calls
    Calls(likelihood=100)
    """

    likelihood: int = 0
    gradient: int = 0
    velocity: int = 0
    velocity_gradient: int = 0
    prior: int = 0
    simulator: int = 0

    def as_dict(self) -> dict[str, int]:
        """The counts that are not 0."""
        return {name: count for name, count in asdict(self).items() if count}

    def __add__(self, other: Calls) -> Calls:
        return Calls(**{name: count + getattr(other, name) for name, count in asdict(self).items()})

    def __repr__(self) -> str:
        return f"Calls({', '.join(f'{name}={count}' for name, count in self.as_dict().items())})"
