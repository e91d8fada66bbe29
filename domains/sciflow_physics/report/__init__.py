"""The closure report: is the corrected simulation distributed like the data?"""

from sciflow_physics.report.assemble import closure
from sciflow_physics.report.measure import Measurements, measure
from sciflow_physics.report.verdict import certify

__all__ = ["Measurements", "certify", "closure", "measure"]
