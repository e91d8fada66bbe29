"""The verbs of `sciflow mri`."""

from sciflow_mri.commands.group import mri

__all__ = ["mri"]
