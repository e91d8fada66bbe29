"""The verbs of `sciflow physics`."""

from sciflow_physics.commands.group import physics

__all__ = ["physics"]
