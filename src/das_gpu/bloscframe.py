"""A frame of Blosc 1, decoded whole or part by part.

A frame is a row of blocks, each compressed by itself (c-blosc, README_CHUNK_FORMAT and
README_HEADER): 16 bytes of header, the place of every block, the blocks. Some of them are decoded
by giving the frame a header and places that speak of those only.

With the byte shuffle, a decoded block is all first bytes of its items, then all second bytes, and
so on; putting these together is its last step, which can be left out.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<BBBBIII")
"""Version of the format and of the compressor, flags, item size; sizes of all that is decoded,
of a block decoded, and of the frame."""
_SHUFFLED, _AS_IS, _BITS_SHUFFLED = 0x01, 0x02, 0x04
"""Flags: bytes are shuffled; nothing is compressed; bits are shuffled."""


class Pick(Protocol):
    """Puts items of 4 bytes together that stand in planes; holds no lock of the interpreter."""

    def __call__(
        self,
        planes: NDArray[np.uint8],
        first: int,
        block: int,
        row_items: int,
        row0: int,
        row_step: int,
        item0: int,
        item_step: int,
        out: NDArray[np.uint32],
        /,
    ) -> None:
        """See `das_gpu.backends.unshuffle.pick`; ``out`` is C-contiguous."""


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
        Size of a block once decoded; the last may have less.
    """

    body: memoryview
    nbytes: int
    block_nbytes: int
    _starts: NDArray[np.uint32]

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
        divisible = not body.readonly and not flags & _AS_IS and 0 < block < nbytes
        return cls(body, nbytes, block, _starts(body, -(-nbytes // block) if divisible else 0))

    def shuffled(self, item_nbytes: int) -> bool:
        """Whether each block is planes of the bytes of such items."""
        flags, item = self.body[2], self.body[3]
        by_bytes = flags & _SHUFFLED and not flags & _BITS_SHUFFLED
        return bool(by_bytes) and item == item_nbytes and self.block_nbytes % item == 0

    def parts(self, nbytes: int) -> Sequence[range]:
        """Blocks to decode together, at least this many bytes; none when only all of it can be.

        The last part takes what is left, so that no short block stands alone.
        """
        if not self._starts.size:
            return ()
        together = -(-nbytes // self.block_nbytes)
        firsts = range(0, max(1, self.nbytes // self.block_nbytes - together + 1), together)
        return tuple(map(range, firsts, (*firsts[1:], self._starts.size)))

    def size(self, part: range) -> int:
        """How many bytes some blocks decode to."""
        return min(part.stop * self.block_nbytes, self.nbytes) - part.start * self.block_nbytes

    def decode(self, out: NDArray[np.uint8]) -> None:
        """Decode all of it into ``out``, ``nbytes`` bytes.

        Raises
        ------
        RuntimeError
            The bytes are damaged.
        """
        _decompress(self.body, out)

    def decode_part(
        self, part: range, out: NDArray[np.uint8], *, in_planes: bool = False
    ) -> NDArray[np.uint8]:
        """Decode a part; not safe from several threads, as it writes to ``body`` meanwhile.

        Parameters
        ----------
        part : range
            One of `parts`.
        out : ndarray
            Contiguous, of at least the part's `size`.
        in_planes : bool
            Leave the bytes of items apart, as they are in each block of a shuffled frame.

        Returns
        -------
        ndarray
            What it has filled of ``out``.

        Raises
        ------
        RuntimeError
            The bytes are damaged.
        """
        filled = out[: self.size(part)]
        end = _HEADER.size + 4 * len(part)
        before = bytes(self.body[:end])
        version, compressor, flags, item = before[:4]
        if in_planes:
            flags &= ~_SHUFFLED
        header = version, compressor, flags, item, filled.size, self.block_nbytes, self.body.nbytes
        _HEADER.pack_into(self.body, 0, *header)
        self.body[_HEADER.size : end] = self._starts[part.start : part.stop].tobytes()
        try:
            _decompress(self.body, filled)
        finally:
            self.body[:end] = before
        return filled


def _starts(body: memoryview, count: int) -> NDArray[np.uint32]:
    """Where the blocks begin; none when they cannot be there."""
    first = _HEADER.size + 4 * count
    if count == 0 or first > body.nbytes:
        return np.empty(0, "<u4")
    starts = np.frombuffer(body, "<u4", count, _HEADER.size).copy()
    inside = starts.min() >= first and starts.max() < body.nbytes
    return starts if inside else starts[:0]


def _decompress(frame: memoryview, out: NDArray[np.uint8]) -> None:
    from numcodecs import blosc

    # The loaders are the parallelism; Blosc's own threads would only take turns with them.
    blosc.use_threads = False
    blosc.decompress(frame, out)
