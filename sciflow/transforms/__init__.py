"""Bijections without weights."""
