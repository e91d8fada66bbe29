"""Simulation to data for collider physics."""
