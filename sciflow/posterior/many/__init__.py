"""Many observations at once: in series or on Dask, chunk by chunk into one Zarr store, the same numbers every time."""

from sciflow.posterior.clusters import cluster
from sciflow.posterior.many.reading import Many, read_many
from sciflow.posterior.many.sampling import sample_many

__all__ = ["Many", "cluster", "read_many", "sample_many"]
