"""Flows of other packages: `from_zuko` and `from_nflows`. The packages are imported when they are used."""

from sciflow.flows.nflows_flow import NflowsFlow, from_nflows
from sciflow.flows.zuko_flow import ZukoFlow, from_zuko

__all__ = ["NflowsFlow", "ZukoFlow", "from_nflows", "from_zuko"]
