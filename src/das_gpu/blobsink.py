"""A run's files in a container of Azure Blob Storage.

The service shows a blob whole or not at all: one request carries it, or its blocks are staged
out of sight and one request commits them. A request whose answer was lost is made again; it
puts the same bytes under the same key, so meeting its own first success does no harm.
"""

from __future__ import annotations

import builtins
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from io import SEEK_END, BytesIO
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

from das_gpu.answers import Errand
from das_gpu.azure import container_client, explain
from das_gpu.errors import AccessDeniedError, DestinationError, SourceError
from das_gpu.lease import hold_prefix, prefix_holder
from das_gpu.locations import Location
from das_gpu.lock import LOCK_KEY, Hold, Holder
from das_gpu.patience import GaveUp, Patience, Watch, patiently
from das_gpu.runfile import check_key
from das_gpu.store import Access, Store, secret_for

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

_T = TypeVar("_T")

_SINGLE_BYTES = 1 << 20  # the library gives such a body 10 s to go out
_BLOCK_BYTES = 8 << 20
_LISTED = 5000  # the most that the service puts on a page
_WRITE = "create and write"
_LACKS_RIGHT = "AuthorizationPermissionMismatch"
_CONTENT_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".html": "text/html; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
}


class BlobSink:
    """Blobs below a location in an Azure container, as a `das_gpu.sink.Sink`.

    Making one lists a blob, so that a wrong name or credential shows before any work is done.
    Not to be pickled.

    Parameters
    ----------
    location : Location
    access : Access, optional

    Raises
    ------
    DestinationError
        There is no such server or container, or it keeps failing; by the methods, too.
    AccessDeniedError
        It refuses the credential, or there is none; by the methods, too.
    UsageError
        The credential cannot be found.
    """

    writers = 8

    def __init__(self, location: Location, access: Access | None = None) -> None:
        access = access or Access()
        secret = secret_for(location, access.credential)
        named = "" if secret.kind == "anonymous" else str(access.credential)
        self._errand = Errand(location, named, writing=True)
        if not named:
            nobody = "Azure lets nobody write without a credential, and none was found"
            raise self._errand.failed("", AccessDeniedError, nobody)
        self._patience = access.patience
        self._above = f"{location.prefix}/" if location.prefix else ""
        self._client = container_client(self._errand, secret, self._patience)
        self._lock = self._client.get_blob_client(self._above + LOCK_KEY)
        try:
            self._store = Store(location, access)
        except SourceError as error:
            raise DestinationError(str(error)) from error
        self.list(limit=1)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a sink is not pickled: it holds a secret; send location and access")

    @property
    def location(self) -> str:
        """The URL, without any secret."""
        return str(self._errand.location)

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:  # noqa: ARG002 - always
        """Upload a file; see `das_gpu.sink.Sink.put`."""
        check_key(key, self.location)
        self._upload(key, BytesIO(data), len(data))

    def flush(self) -> None:
        """Do nothing: what the service has acknowledged is on its disks."""

    @contextmanager
    def open_writer(self, key: str) -> Iterator[IO[bytes]]:
        """Collect a file, on disk if it is large, and upload it after the block."""
        check_key(key, self.location)
        try:
            with tempfile.SpooledTemporaryFile(_BLOCK_BYTES) as file:
                yield file
                self._upload(key, file, file.seek(0, SEEK_END))
        except OSError as error:
            raise DestinationError(
                f"Collecting {key} in {tempfile.gettempdir()} failed: {error.strerror or error}. "
                f"Free some space there, or set TMPDIR to another folder."
            ) from error

    def get(self, key: str) -> bytes | None:
        """Content of a blob, or None; see `das_gpu.sink.Sink.get`."""
        check_key(key, self.location)
        try:
            content = self._store.get(key)
        except SourceError as error:
            raise DestinationError(str(error)) from error
        return None if content is None else bytes(content)

    def list(self, prefix: str = "", *, limit: int | None = None) -> builtins.list[str]:
        """Keys that begin with ``prefix``, a page at a time; see `das_gpu.sink.Sink.list`."""
        size = min(limit or _LISTED, _LISTED)
        names: builtins.list[str] = []
        more: str | None = None

        def page(_: Watch) -> tuple[builtins.list[str], str | None]:
            listing = self._client.list_blob_names(
                name_starts_with=self._above + prefix, results_per_page=size
            )
            pages: Any = listing.by_page(more)
            return [*next(pages, ())], pages.continuation_token

        while limit is None or len(names) < limit:
            found, more = self._ask("list", "", page)
            names += (name for name in found if name != self._above + LOCK_KEY)
            if not more:
                break
        return sorted(name.removeprefix(self._above) for name in names[:limit])

    def delete(self, key: str) -> None:
        """Delete a blob; see `das_gpu.sink.Sink.delete`."""
        from azure.core.exceptions import ResourceNotFoundError

        check_key(key, self.location)

        def delete(_: Watch) -> None:
            with suppress(ResourceNotFoundError):
                self._client.delete_blob(self._above + key)

        self._ask("delete", key, delete)

    def sweep(self) -> None:
        """Do nothing: of a killed upload nothing is seen; its blocks are dropped after a week."""

    def hold(self, run: str) -> AbstractContextManager[Hold]:
        """Lease the lock's blob for a run; see `das_gpu.sink.Sink.hold`."""
        return hold_prefix(self._lock, self._ask, self.location, run)

    def holder(self) -> Holder | None:
        """Who has leased the lock's blob; see `das_gpu.sink.Sink.holder`."""
        return prefix_holder(self._lock, self._ask)

    def _upload(self, key: str, file: IO[bytes], size: int) -> None:
        from azure.storage.blob import BlobBlock, ContentSettings

        kind = _CONTENT_TYPES.get(PurePosixPath(key).suffix, "application/octet-stream")
        how: dict[str, Any] = {"content_settings": ContentSettings(content_type=kind)}
        blob = self._client.get_blob_client(self._above + key)
        if size <= _SINGLE_BYTES:
            file.seek(0)
            data = file.read()
            self._ask(_WRITE, key, lambda _: blob.upload_blob(data, overwrite=True, **how))
            return
        # Not left to the library, for which one failed block is the end of the whole upload.
        # Other writers' blocks of the same blob have other names.
        token = secrets.token_hex(8)
        starts = range(0, size, _BLOCK_BYTES)
        blocks = [BlobBlock(f"{token}-{start:020d}") for start in starts]
        for block, start in zip(blocks, starts, strict=True):
            length = min(_BLOCK_BYTES, size - start)
            self._ask(_WRITE, key, partial(_stage, blob, block.id, file, start, length))
        self._ask(_WRITE, key, lambda _: blob.commit_block_list(blocks, **how))

    def _ask(
        self,
        right: str,
        key: str,
        request: Callable[[Watch], _T],
        patience: Patience | None = None,
    ) -> _T:
        """Make a request patiently; ``right`` is what the credential must allow."""
        from azure.core.exceptions import AzureError

        def attempt(watch: Watch) -> _T:
            try:
                return request(watch)
            except (AzureError, ValueError) as error:
                raise self._explained(key, error) from error

        try:
            return patiently(attempt, patience or self._patience)
        except GaveUp as end:
            raise DestinationError(f"{end.last.error} {end}") from end
        except AccessDeniedError as error:
            if getattr(error.__cause__, "error_code", "") != _LACKS_RIGHT:
                raise
            lacks = f"the credential does not give the right to {right}"
            raise self._errand.failed(key, AccessDeniedError, lacks, _LACKS_RIGHT) from error

    def _explained(self, key: str, error: Exception) -> Exception:
        from azure.core.exceptions import ResourceNotFoundError

        location = self._errand.location
        explained = explain(error, self._errand, key)
        if isinstance(error, ResourceNotFoundError):
            return DestinationError(
                f"Writing to {location}: there is no container {location.container!r} "
                f"in the account {location.account!r}. Check the spelling, or make it first: "
                f"das-gpu makes none, because who may read it is its owner's decision."
            )
        return explained


def _stage(
    blob: BlobClient, name: str, file: IO[bytes], start: int, size: int, watch: Watch
) -> None:
    file.seek(start)
    body: Any = _Body(file, size, watch)
    blob.stage_block(name, body, size)


class _Body:
    """The next bytes of a file as a request's body, which times out when it goes too slowly."""

    def __init__(self, file: IO[bytes], size: int, watch: Watch) -> None:
        self._file, self._size, self._watch = file, size, watch
        self._sent = 0

    def __len__(self) -> int:
        return self._size

    def read(self, size: int) -> bytes:
        if self._watch.verdict(self._sent) is not None:
            raise TimeoutError(f"only {self._sent} of {self._size} bytes could be sent in time")
        piece = self._file.read(min(size, self._size - self._sent))
        self._sent += len(piece)
        return piece
