"""Files to rows with units: roles of columns, formats, selections, event numbers."""

from sciflow_physics.data.reading import count, iterate, read, slices
from sciflow_physics.data.roles import Roles

__all__ = ["Roles", "count", "iterate", "read", "slices"]
