"""Worker processes by dask, started here or there already.

The only package that knows dask's scheduler, dask-cuda and RMM.
"""

from das_gpu.cluster.attach import attach
from das_gpu.cluster.executor import DaskWorkers
from das_gpu.cluster.local import START_S, Kind, start
from das_gpu.cluster.packages import findings

__all__ = ["START_S", "DaskWorkers", "Kind", "attach", "findings", "start"]
