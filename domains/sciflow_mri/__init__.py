"""Magnetic resonance imaging: from an undersampled scan to a certified posterior."""

from sciflow.domain import Domain

__all__ = ["domain"]

domain = Domain(
    name="mri",
    summary="Magnetic resonance imaging: draws of the image given an undersampled multi-coil scan, with a certificate.",
    commands="sciflow_mri.commands:mri",
    demo="sciflow_mri.demo:run",
    extra="mri",
)
