"""Reading through azure-storage-blob, where obstore cannot be used."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, NoReturn

from das_gpu.answers import Errand
from das_gpu.azure import container_client, explain
from das_gpu.credentials import Secret
from das_gpu.errors import InterruptedRunError, SourceError, SourceNotFoundError
from das_gpu.patience import Patience, Transient, Watch
from das_gpu.redaction import scrub
from das_gpu.transports import Absent, Changed, CheckSize, Part, Stamp

_LOOK_S = 0.25
_LISTED = 5000


class Blobs:
    """A container of Azure Blob Storage, as a `das_gpu.transports.Transport`."""

    def __init__(self, errand: Errand, secret: Secret, patience: Patience) -> None:
        self._errand = errand
        self._client = container_client(errand, secret, patience)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a transport is not pickled: it holds a secret; send location and access")

    def get(
        self,
        key: str,
        check: CheckSize,
        watch: Watch,
        part: Part | None = None,
        version: str | None = None,
    ) -> memoryview:
        """Download a blob."""
        from azure.core import MatchConditions
        from azure.core.exceptions import AzureError

        name = self._name(key)
        download = _Download(check, watch)
        try:
            wanted = self._range(name, part)
            if version is not None:
                wanted |= {"etag": version, "match_condition": MatchConditions.IfNotModified}
            with download.watched():
                answer = self._client.download_blob(name, **wanted, **download.hooks)
                return memoryview(answer.readall())
        except (AzureError, OSError, TypeError, ValueError, _AskedAgain) as error:
            raise self._failed(key, error, download) from error

    def stamp(self, key: str) -> Stamp:
        """Size and entity tag of a blob."""
        from azure.core.exceptions import AzureError

        try:
            found = self._client.get_blob_client(self._name(key)).get_blob_properties()
        except AzureError as error:
            explained = explain(error, self._errand, key)
            raise (Absent() if isinstance(explained, SourceNotFoundError) else explained) from error
        return Stamp(found.size, found.etag)

    def children(self) -> tuple[list[str], list[str]]:
        """Names of prefixes and blobs directly below the location; of the first few thousand."""
        from azure.core.exceptions import AzureError
        from azure.storage.blob import BlobPrefix

        prefix = self._errand.location.prefix
        folders: list[str] = []
        files: list[str] = []
        try:
            for one in islice(self._client.walk_blobs(f"{prefix}/" if prefix else ""), _LISTED):
                kind = folders if isinstance(one, BlobPrefix) else files
                kind.append(one.name.rstrip("/").rpartition("/")[2])
        except AzureError as error:
            raise explain(error, self._errand) from error
        return folders, files

    def _name(self, key: str) -> str:
        prefix = self._errand.location.prefix
        return f"{prefix}/{key}" if prefix else key

    def _range(self, name: str, part: Part | None) -> dict[str, Any]:
        """A byte range in the library's terms, which does not count from the end."""
        if part is None:
            return {}
        start, stop = part
        if start < 0:
            start = max(0, start + self._client.get_blob_client(name).get_blob_properties().size)
        return {"offset": start} if stop is None else {"offset": start, "length": stop - start}

    def _failed(self, key: str, error: Exception, download: _Download) -> Exception:
        if download.cancelled is not None:
            return download.cancelled
        if isinstance(error, ValueError):
            scrub(error)
            return self._errand.failed(key, SourceError, "the answer is not Azure's", str(error))
        if getattr(error, "status_code", None) == 412:
            return Changed()
        if not isinstance(error, _AskedAgain):
            explained = explain(error, self._errand, key)
            if isinstance(explained, SourceNotFoundError):
                return Absent()
            if not download.begun and download.verdict is None:
                return explained
        found = download.verdict or "it broke off"
        failed = self._errand.failed(key, SourceError, "the answer is not whole", found)
        return Transient(failed, answered=True)


class _AskedAgain(Exception):  # noqa: N818 - ends the library's own repetitions
    """The library repeats a request whose body broke off; that is decided elsewhere."""


class _Download:
    """Ends a download of the library that is too large, too slow or not wanted any more.

    The library's own time limits see the next byte only: one byte a second would go on for
    ever. So a thread looks how far it has come, and shuts the connection.
    """

    def __init__(self, check: CheckSize, watch: Watch) -> None:
        self._check = check
        self._watch = watch
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.begun = False
        self.verdict: str | None = None
        self.cancelled: InterruptedRunError | None = None
        self._response: Any = None
        self._raw: Any = None

    @property
    def hooks(self) -> dict[str, Any]:
        """Options of the library's call: what it tells us before and after each request."""
        return {"raw_request_hook": self._asking, "raw_response_hook": self._answered}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look after the download inside the block."""
        try:
            yield
        except Exception:
            # What the library raises of an answer that it does not like leaves it open.
            if self._response is not None:
                self._response.close()
            raise
        finally:
            self._over.set()
            if self._thread is not None:
                self._thread.join()

    def _asking(self, request: Any) -> None:  # noqa: ARG002 - the library's signature
        if self.begun:
            raise _AskedAgain

    def _answered(self, response: Any) -> None:
        answer = response.http_response
        if answer.status_code in (200, 206):
            try:
                self._check(int(answer.headers.get("Content-Length", 0)))
            except Exception:
                answer.internal_response.close()
                raise
            self.begun = True
        # What a refusal says may come as slowly as an object.
        self._response = answer.internal_response
        self._raw = self._response.raw
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="das-gpu-watch", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            try:
                self.verdict = self._watch.verdict(self._raw.tell())
            except InterruptedRunError as error:
                self.cancelled = error
            if self.verdict is not None or self.cancelled is not None:
                # The body has just come to its end, and its connection may be back in the pool.
                with suppress(OSError, ValueError, RuntimeError):
                    self._raw.shutdown()
                return
