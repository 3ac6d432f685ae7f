"""A frame of Blosc 1, decoded whole or block by block.

A frame is a row of blocks, each compressed by itself (c-blosc, README_CHUNK_FORMAT and
README_HEADER): 16 bytes of header, the place of every block, the blocks. A block is decoded by
giving it a header of its own, so that it is a frame of one block.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<BBBBIII")
"""Version of the format and of the compressor, flags, item size; sizes of all that is decoded,
of a block decoded, and of the frame."""
_ALONE = struct.Struct("<BBBBIIII")
"""The header of a frame of one block, and that block's place."""
_AS_IS, _NOT_SPLIT = 0x02, 0x10
_SMALLEST_BLOCK = 1 << 16
"""Blocks below this cost more to find than to decode."""


@dataclass(frozen=True, slots=True)
class BloscFrame:
    """A frame whose declared sizes agree with its bytes and with what is expected of it.

    Attributes
    ----------
    body : memoryview
        All of the frame.
    nbytes : int
        Size once decoded.
    block_nbytes : int
        Decoded size of every block but the last, which may be shorter; ``nbytes`` where the
        frame cannot be decoded block by block.
    """

    body: memoryview
    nbytes: int
    block_nbytes: int
    _starts: tuple[int, ...]
    _ends: tuple[int, ...]

    @classmethod
    def of(cls, body: memoryview, nbytes: int) -> BloscFrame:
        """Check a frame that should decode to ``nbytes`` bytes.

        Raises
        ------
        ValueError
            It is too short to be one, or declares other sizes.
        """
        if body.nbytes < _HEADER.size:
            raise ValueError(f"{body.nbytes} bytes are too few for a Blosc frame")
        _, _, flags, _, decoded, block, stored = _HEADER.unpack_from(body)
        if decoded != nbytes:
            raise ValueError(
                f"the Blosc frame declares {decoded} bytes where the chunk has {nbytes}"
            )
        if stored != body.nbytes:
            raise ValueError(f"the Blosc frame should have {stored} bytes and has {body.nbytes}")
        starts: tuple[int, ...] = ()
        ends: tuple[int, ...] = ()
        if not body.readonly and not flags & _AS_IS and _SMALLEST_BLOCK <= block < nbytes:
            starts, ends = _blocks(body, -(-nbytes // block))
        return cls(body, nbytes, block if starts else nbytes, starts, ends)

    def decode(self, out: NDArray[np.uint8]) -> None:
        """Decode all of it into ``out``, ``nbytes`` bytes.

        Raises
        ------
        RuntimeError
            The bytes are damaged.
        """
        _decompress(self.body, out)

    @property
    def count(self) -> int:
        """Number of blocks that can be decoded by themselves."""
        return max(1, len(self._starts))

    def decode_block(self, number: int, out: NDArray[np.uint8]) -> int:
        """Decode one block; not safe from several threads, as it writes to ``body`` meanwhile.

        Parameters
        ----------
        number : int
            Below ``count``.
        out : ndarray
            Contiguous, of at least ``block_nbytes`` bytes.

        Returns
        -------
        int
            How many bytes of ``out`` it fills.

        Raises
        ------
        RuntimeError
            The bytes are damaged.
        """
        if not self._starts:
            self.decode(out)
            return self.nbytes
        start = self._starts[number]
        size = min(self.block_nbytes, self.nbytes - number * self.block_nbytes)
        version, compressor, flags, item, *_ = _HEADER.unpack_from(self.body)
        if size < self.block_nbytes:
            flags |= _NOT_SPLIT  # as the last one never is, when it is short
        place, end = start - _ALONE.size, self._ends[number]
        before = bytes(self.body[place:start])
        header = (version, compressor, flags, item, size, size, end - place, _ALONE.size)
        _ALONE.pack_into(self.body, place, *header)
        try:
            _decompress(self.body[place:end], out[:size])
        finally:
            self.body[place:start] = before
        return size


def _blocks(body: memoryview, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the blocks begin and end; nothing when some cannot: then all is left to Blosc."""
    first = _HEADER.size + 4 * count
    if first > body.nbytes:
        return (), ()
    starts = np.frombuffer(body, "<u4", count, _HEADER.size)
    # Blosc's threads write blocks in the order in which they are ready.
    ends = np.append(np.sort(starts), body.nbytes)
    if ends[0] < first or not np.all(np.diff(ends) > 0):
        return (), ()
    following = np.searchsorted(ends, starts, side="right")
    return tuple(starts.tolist()), tuple(ends[following].tolist())


def _decompress(frame: memoryview, out: NDArray[np.uint8]) -> None:
    from numcodecs import blosc

    # The loaders are the parallelism; Blosc's own threads would only take turns with them.
    blosc.use_threads = False
    blosc.decompress(frame, out)
