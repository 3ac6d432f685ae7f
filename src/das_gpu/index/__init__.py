"""Recordings in HDF5 files, indexed so that they are read in place like one Zarr archive.

`das_gpu.index.build` brings files together, `das_gpu.index.layouts` finds a file's samples and
times, `das_gpu.index.hdf5` where their bytes lie, `das_gpu.index.grid` what chunks they make up.
Reading the result is `das_gpu.virtual`'s part.
"""

from das_gpu.index.build import Summary, index_files

__all__ = ["Summary", "index_files"]
