"""Preprocessing that is part of the model: units, point masses, masks."""
