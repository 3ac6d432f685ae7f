"""A file whose content is hashed on its way."""

from __future__ import annotations

import hashlib
import io
from typing import IO, Any


class HashedFile(io.RawIOBase):
    """A file that is written from its beginning to its end, and the hash and size of that.

    Parameters
    ----------
    file : binary file
        Gets all that is written; closing this one leaves it open.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of what has been written so far."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        self._hash.update(data)
        self._file.write(data)
        self.size += len(data)
        return len(data)
