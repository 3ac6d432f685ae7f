"""A frame of Blosc 1, decoded whole or part by part.

A frame is a row of blocks, each compressed by itself (c-blosc, README_CHUNK_FORMAT and
README_HEADER): 16 bytes of header, the place of every block, the blocks. Some blocks in a row are
decoded by giving them a header and places of their own, so that they are a frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<BBBBIII")
"""Version of the format and of the compressor, flags, item size; sizes of all that is decoded,
of a block decoded, and of the frame."""
_AS_IS = 0x02
PART_NBYTES = 1 << 23
"""Of a part, decoded, at least: less is not worth the call, more is memory for nothing."""


@dataclass(frozen=True, slots=True)
class BloscFrame:
    """A frame whose declared sizes agree with its bytes and with what is expected of it.

    Attributes
    ----------
    body : memoryview
        All of the frame.
    nbytes : int
        Size once decoded.
    part_nbytes : int
        Decoded size of the largest part.
    """

    body: memoryview
    nbytes: int
    part_nbytes: int
    _block_nbytes: int
    _starts: tuple[int, ...]
    _parts: tuple[range, ...]

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
        whole = cls(body, nbytes, nbytes, block, (), ())
        if body.readonly or flags & _AS_IS or not 0 < block < nbytes:
            return whole
        starts = _starts(body, -(-nbytes // block))
        together = -(-PART_NBYTES // block)
        # The last part takes what is left, so that none is a short block alone.
        firsts = range(0, max(1, nbytes // block - together + 1), together)
        if not starts or len(firsts) == 1:
            return whole
        stops = (*firsts[1:], len(starts))
        parts = tuple(map(range, firsts, stops))
        return cls(body, nbytes, len(parts[-1]) * block, block, starts, parts)

    @property
    def count(self) -> int:
        """Number of parts."""
        return max(1, len(self._parts))

    def decode(self, out: NDArray[np.uint8]) -> None:
        """Decode all of it into ``out``, ``nbytes`` bytes.

        Raises
        ------
        RuntimeError
            The bytes are damaged.
        """
        _decompress(self.body, out)

    def decode_part(self, number: int, out: NDArray[np.uint8]) -> int:
        """Decode a part; not safe from several threads, as it writes to ``body`` meanwhile.

        Parameters
        ----------
        number : int
            Below ``count``.
        out : ndarray
            Contiguous, of at least ``part_nbytes`` bytes.

        Returns
        -------
        int
            How many bytes of ``out`` it fills.

        Raises
        ------
        RuntimeError
            The bytes are damaged.
        """
        if not self._parts:
            self.decode(out)
            return self.nbytes
        part, block = self._parts[number], self._block_nbytes
        last = part.stop == len(self._starts)
        end = self.body.nbytes if last else self._starts[part.stop]
        size = (self.nbytes if last else part.stop * block) - part.start * block
        first = self._starts[part.start]
        place = first - _HEADER.size - 4 * len(part)
        frame, before = self.body[place:end], bytes(self.body[place:first])
        places = np.array(self._starts[part.start : part.stop]) - place
        _HEADER.pack_into(frame, 0, *self.body[:4], size, block, frame.nbytes)
        frame[_HEADER.size : first - place] = places.astype("<u4").tobytes()
        try:
            _decompress(frame, out[:size])
        finally:
            self.body[place:first] = before
        return size


def _starts(body: memoryview, count: int) -> tuple[int, ...]:
    """Where the blocks begin; nothing when they do not stand in order, or cannot be there."""
    first = _HEADER.size + 4 * count
    if first > body.nbytes:
        return ()
    starts = np.frombuffer(body, "<u4", count, _HEADER.size).astype(np.int64)
    inside = starts[0] >= first and starts[-1] < body.nbytes
    return tuple(starts.tolist()) if inside and np.all(np.diff(starts) > 0) else ()


def _decompress(frame: memoryview, out: NDArray[np.uint8]) -> None:
    from numcodecs import blosc

    # The loaders are the parallelism; Blosc's own threads would only take turns with them.
    blosc.use_threads = False
    blosc.decompress(frame, out)
