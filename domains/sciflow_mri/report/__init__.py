"""The files of a result: netCDF, NIfTI, picture, page."""

from sciflow_mri.report.page import page
from sciflow_mri.report.writing import write_images, write_results

__all__ = ["page", "write_images", "write_results"]
