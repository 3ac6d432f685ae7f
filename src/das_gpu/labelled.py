"""The envelope of a labelled array: xarray in, xarray out, whatever holds the samples.

Coordinates become an acquisition, the recipe's windows are laid over it, and the result gets the
labels of what was kept. Of a dask array nothing is computed: each block gets its halos by
``map_overlap``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from das_gpu import host, units
from das_gpu.backends import Array
from das_gpu.labels import SampleClock, acquisition_of, attributes_of, dims_of, to_ns
from das_gpu.model import Acquisition
from das_gpu.plan import Plan
from das_gpu.plan import plan as lay_out
from das_gpu.recipe import Recipe, Setting
from das_gpu.run import FAST_SAMPLES
from das_gpu.timescale import TimeScale
from das_gpu.windows import Piece, covering, envelopes_db, reach

if TYPE_CHECKING:
    import xarray as xr

_WHOLE: dict[str, Setting] = {
    "tile.bands": 1,
    "tile.overlap_time": 0.0,
    "tile.overlap_channels": 0.0,
    "image.format": "npy",
}
"""All channels as one tile, each sample in one window."""


def envelope(dataarray: xr.DataArray, recipe: Recipe | None = None) -> xr.DataArray:
    """Band-pass, common mode and envelope of a labelled array, in dB.

    The samples are worked on where they are: NumPy's on the processors, CuPy's on their device,
    each block of a dask array when it is computed.

    What is computed is what `das_gpu.extract` computes before it draws: the array is covered by
    windows of ``tile.seconds`` from its first selected sample on, each filtered with its halos;
    what is left at the end is made by a window that ends there, and an array shorter than a
    window is a window itself. So a channel may be dead in one window and live in the next. The
    windows do not depend on how a dask array is chunked, and neither does the result. Its time
    chunks become whole windows, at least a halo long; where a common mode is subtracted, the
    median needs every channel of a sample, and a chunk gets all channels: where that is too much
    for a worker's memory, take fewer channels or a shorter ``tile.seconds``.

    Parameters
    ----------
    dataarray : xarray.DataArray
        Two-dimensional; one dimension is ``time``, the other ``distance``, ``channel`` or any
        other. A ``time`` coordinate of datetimes, or of seconds, gives the sampling rate and where
        the recording jumps; without one ``archive.sampling_rate_hz`` does. A ``distance``
        coordinate in metres, or ``archive.channel_spacing_m``, says how much cable is covered.
    recipe : Recipe, optional
        The ``continuous`` preset by default. Its selection counts the array's own channels;
        ``tile.bands``, overlaps and what concerns images, but for ``image.units``, are not looked
        at.

    Returns
    -------
    xarray.DataArray
        Dims in the same order, the coordinates of the kept samples and channels (for
        ``channel_reduce = "mean"`` the means of numeric ones), values of ``compute.dtype``. Its
        ``units`` are ``dB re 1e-6 count``, or of the array's own unit, or ``dB re 1 strain`` when
        the recipe asks for strain; ``processing`` says what
        was done. The level is -inf where the envelope is 0, as in channels that are dead in a
        window (constant, or not finite somewhere); windows that the clock jumps in are NaN.

    Raises
    ------
    UsageError
        The array or its coordinates are not of that kind.
    RecipeError
        The recipe cannot be carried out on it.

    Examples
    --------
    >>> from das_gpu import Recipe, envelope, open_archive
    >>> samples = open_archive(recording).dataset.RawData
    >>> recipe = Recipe().with_settings({"selection.channel_step": 10})
    >>> level = envelope(samples.isel(time=slice(0, 4000)), recipe)
    >>> level.dims, level.shape, level.attrs["units"]
    (('distance', 'time'), (120, 2000), 'dB re 1e-6 count')
    >>> bool((level.mean() > 120).compute())
    True
    """
    import xarray as xr

    recipe = recipe or Recipe()
    along_channels, along_time = dims_of(dataarray)
    clock = SampleClock.of(dataarray, along_time)
    acquisition = acquisition_of(dataarray, recipe, along_channels, along_time, clock)
    asked = recipe.with_settings(_WHOLE)
    sample_range = clock.sample_range(recipe.selection)
    draft = _draft(acquisition, asked, sample_range)
    samples, kept = _channels(dataarray, draft, along_channels, along_time)
    pieces = covering(*_reduced(draft), sample_range)
    n_kept = sum(piece.samples for piece in pieces)
    job = _Job(clock.scale, pieces, compiled=n_kept * samples.shape[0] >= FAST_SAMPLES)
    values = _compute(samples, clock.values, job, common_mode=pieces[0].plan.common_mode)
    if offset_db := units.offset_db(acquisition, asked):
        values = values + values.dtype.type(offset_db)
    times = slice(sample_range[0], sample_range[1], draft.time_step)
    made = xr.DataArray(
        values,
        dims=(along_channels, along_time),
        coords=kept.isel({along_time: times}).coords,
        name="envelope",
        attrs=attributes_of(dataarray, pieces[0].plan, draft),
    )
    return made.transpose(*dataarray.dims)


def _channels(
    dataarray: xr.DataArray, draft: Plan, along_channels: str, along_time: str
) -> tuple[Array, xr.DataArray]:
    """Samples of the kept channels, (channel, sample), and an array with their labels."""
    step, start = draft.channel_step, draft.channel_start
    if step == 1 or draft.recipe.selection.channel_reduce == "stride":
        part = slice(start, draft.channel_stop, step)
        kept = dataarray.isel({along_channels: part}).transpose(along_channels, along_time)
        return kept.data, kept
    whole = slice(start, start + draft.selected_channels * step)
    members = dataarray.isel({along_channels: whole}).transpose(along_channels, along_time)
    labels = members.isel({along_channels: slice(0, None, step)})
    along = {name: each for name, each in members.coords.items() if along_channels in each.dims}
    means = {
        name: each.variable.to_base_variable().coarsen({along_channels: step}, np.mean)
        for name, each in along.items()
        if each.dtype.kind in "iuf"
    }
    return _means(members.data, step), labels.drop_vars(along).assign_coords(means)


def _means(samples: Array, step: int) -> Array:
    """Means of groups of channels, in float64."""
    if not hasattr(samples, "dask"):
        return _group_means(samples, step=step)
    sizes = [max(step, size - size % step) for size in samples.chunks[0]]
    whole = samples.rechunk({0: max(sizes)})
    chunks = tuple(size // step for size in whole.chunks[0]), whole.chunks[1]
    return whole.map_blocks(
        partial(_group_means, step=step), dtype=np.float64, chunks=chunks, meta=_meta(whole)
    )


def _group_means(samples: Array, *, step: int) -> Array:
    groups = samples.reshape(samples.shape[0] // step, step, samples.shape[1])
    return groups.sum(axis=1, dtype=np.float64) / step


def _draft(acquisition: Acquisition, recipe: Recipe, sample_range: tuple[int, int]) -> Plan:
    """The recipe on all channels of the array, as one window: to say what is refused, and why."""
    length_s = (sample_range[1] - sample_range[0]) / acquisition.sampling_rate_hz
    seconds = min(recipe.tile.seconds, length_s)
    return lay_out(acquisition, recipe.with_settings({"tile.seconds": seconds}), sample_range)


def _reduced(draft: Plan) -> tuple[Acquisition, Recipe]:
    """The acquisition and the recipe that are left when the channels have been selected."""
    channels = draft.selected_channels
    acquisition = replace(
        draft.acquisition,
        shape=(channels, draft.acquisition.n_samples),
        chunk_shape=(channels, draft.acquisition.n_samples),
        distances_m=tuple(draft.kept_distance_m(kept) for kept in range(channels)),
    )
    return acquisition, draft.recipe.with_settings(
        {
            "selection.channel_start": 0,
            "selection.channel_stop": None,
            "selection.channel_step": 1,
            "selection.channel_reduce": "stride",
        }
    )


@dataclass(frozen=True)
class _Job:
    """What is done to the samples, whatever holds them."""

    scale: TimeScale | None
    pieces: tuple[Piece, ...]
    compiled: bool

    def part(
        self,
        samples: Array,
        times: NDArray[Any] | None,
        first: int,
        pieces: tuple[Piece, ...],
        threads: int,
    ) -> Array:
        """Envelope of some pieces; ``first`` is the number of the first of the samples."""
        times_ns = None if times is None or self.scale is None else to_ns(times, self.scale)
        return envelopes_db(
            samples, times_ns, first, pieces, threads=threads, compiled=self._compiled
        )

    @property
    def _compiled(self) -> bool:
        from das_gpu.backends import fast

        return self.compiled and fast.installed()


def _compute(samples: Array, times: Any, job: _Job, *, common_mode: bool) -> Array:
    """Envelope of all pieces: at once, or of a dask array when it is asked for."""
    if hasattr(samples, "dask"):
        return _lazily(samples, times, job, common_mode=common_mode)
    if times is not None:
        times = np.asarray(times)
    return job.part(samples, times, 0, job.pieces, host.processors())


def _lazily(samples: Any, times: Any, job: _Job, *, common_mode: bool) -> Any:
    """The same block by block; a block holds whole pieces, and sees the halos beside it."""
    import dask.array as da

    before, after = reach(job.pieces)
    blocks = _blocks(job.pieces, max(before, after, *samples.chunks[1]))
    low = max(0, job.pieces[0].start - before)
    high = min(samples.shape[1], job.pieces[-1].stop + after)
    bounds = [low, *(block[0].start for block in blocks[1:]), high]
    widths = tuple(b - a for a, b in pairwise(bounds))
    arrays: list[Any] = [samples[:, low:high].rechunk({0: -1} if common_mode else {})]
    if times is not None:
        wrap: Any = da.asarray
        arrays.append(wrap(times)[low:high])
    arrays = [array.rechunk({array.ndim - 1: widths}) for array in arrays]
    kept = tuple(sum(piece.samples for piece in block) for block in blocks)
    dtype = np.dtype(job.pieces[0].plan.recipe.compute.dtype)
    overlapped: Any = da.map_overlap
    return overlapped(
        partial(_block, job=job, blocks=blocks, firsts=(low, *(b - before for b in bounds[1:-1]))),
        *arrays,
        depth=[{array.ndim - 1: (before, after)} for array in arrays],
        boundary="none",
        trim=False,
        allow_rechunk=False,
        chunks=(arrays[0].chunks[0], kept),
        dtype=dtype,
        meta=_meta(samples).astype(dtype),
    )


def _block(
    samples: Array,
    times: NDArray[Any] | None = None,
    *,
    job: _Job,
    blocks: list[tuple[Piece, ...]],
    firsts: tuple[int, ...],
    block_id: tuple[int, int],
) -> Array:
    """Envelope of a block's pieces, on one thread: dask works on many blocks at once."""
    number = block_id[1]
    return job.part(samples, times, firsts[number], blocks[number], 1)


def _blocks(pieces: tuple[Piece, ...], least: int) -> list[tuple[Piece, ...]]:
    """Pieces in groups that span at least so many samples."""
    groups: list[list[Piece]] = [[]]
    for piece in pieces:
        begun = groups[-1]
        # The last piece may reach back over the one before it.
        if begun and not piece.skip and piece.start - begun[0].start >= least:
            groups.append([])
        groups[-1].append(piece)
    if len(groups) > 1 and groups[-1][-1].stop - groups[-1][0].start < least:
        short = groups.pop()
        groups[-1] += short
    return [tuple(group) for group in groups]


def _meta(samples: Any) -> Array:
    """An empty array of the kind that a dask array's blocks are."""
    return samples._meta[:0, :0]  # noqa: SLF001 - dask's own way to tell NumPy's from CuPy's
