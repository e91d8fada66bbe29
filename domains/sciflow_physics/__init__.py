"""Simulation to data for collider physics."""

from sciflow.domain import Domain

__all__ = ["domain"]

domain = Domain(
    name="physics",
    summary="Collider physics: make a simulated ntuple look like data, with uncertainty and a closure report.",
    commands="sciflow_physics.commands:physics",
    demo="sciflow_physics.demo:run",
    extra="physics",
)
