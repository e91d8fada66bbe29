"""Preprocessing that is part of the model: units, point masses, masks."""

from sciflow.preprocessing.column import Column
from sciflow.preprocessing.curves import Curves
from sciflow.preprocessing.preprocessing import Preprocessing

__all__ = ["Column", "Curves", "Preprocessing"]
