"""A store's objects, read patiently: what passes is waited out, what doesn't becomes an error."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from das_gpu.answers import Errand
from das_gpu.credentials import ANONYMOUS, Credential, Secret, refuse_ambiguous
from das_gpu.errors import DasGpuError, SourceNotFoundError, UsageError
from das_gpu.journal import facts
from das_gpu.locations import Location, parse_location
from das_gpu.patience import GaveUp, Patience, Transient, Watch, patiently
from das_gpu.transports import Absent, CheckSize, Part, Stamp, Transport
from das_gpu.virtual.document import Document
from das_gpu.virtual.transport import IndexedFiles, is_index

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

TransportName = Literal["obstore", "azure-sdk"]


@dataclass(frozen=True, slots=True)
class Access:
    """How a location is reached. Holds no secret.

    Attributes
    ----------
    credential : Credential
    transport : {"obstore", "azure-sdk"}
        The library that reads; ``azure-sdk`` reads Azure only.
    patience : Patience
    account : str
        Storage account of ``az://`` locations, where they are not to be the environment's.
    """

    credential: Credential = field(default_factory=Credential)
    transport: TransportName = "obstore"
    patience: Patience = field(default_factory=Patience)
    account: str = ""

    def locate(self, text: str | Path) -> Location:
        """Understand a path or URL; see `das_gpu.locations.parse_location`."""
        return parse_location(text, account=self.account, credential=self.credential)


class Store:
    """The objects below a location. Safe to call from several threads.

    Opening reads nothing. A pickle holds no secret: the credential is looked up again where it
    is loaded.

    Parameters
    ----------
    location : Location
    access : Access, optional

    Raises
    ------
    SourceNotFoundError
        The local folder, or the server, does not exist.
    SourceError
        The local path is a file.
    UsageError
        The credential cannot be found, or the transport does not reach such a place.
    """

    def __init__(self, location: Location, access: Access | None = None) -> None:
        self.location = location
        self.access = access or Access()
        self._had = ("", -math.inf)  # the last object read, and when
        self._failed_s = -math.inf  # when it could not be read again
        self._asking = threading.Lock()
        self._secret = secret_for(location, self.access.credential)
        self._errand = self._errand_at(location, self._secret)
        index = IndexedFiles(self._errand, self._open_at) if is_index(location) else None
        self._index = index
        self._transport = index or self._open(self._errand, self._secret)
        self._second: Transport | None = None
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[type[Store], tuple[Location, Access]]:
        return Store, (self.location, self.access)

    def within(self, total_s: float) -> Store:
        """The same store, with less patience if that is less."""
        other = copy(self)
        patience = self.access.patience
        patience = replace(patience, total_s=min(patience.total_s, total_s))
        other.access = replace(self.access, patience=patience)
        return other

    def _errand_at(self, location: Location, secret: Secret) -> Errand:
        return Errand(location, "" if secret.kind == "anonymous" else str(self.access.credential))

    def _open_at(self, location: Location) -> Transport:
        """The transport to a place that an index names."""
        secret = secret_for(location, self.access.credential)
        return self._open(self._errand_at(location, secret), secret)

    def _open(self, errand: Errand, secret: Secret) -> Transport:
        location, patience = errand.location, self.access.patience
        if location.is_local:
            from das_gpu.transports.files import Files

            return Files(errand)
        if self.access.transport == "azure-sdk":
            if location.scheme != "azure":
                raise UsageError(
                    f"--transport azure-sdk reads Azure Blob Storage only, not {location}. "
                    "Leave it out."
                )
            _check_server(location, patience)
            return self._open_azure(errand, secret)
        from das_gpu.transports.objects import Objects

        if location.scheme == "azure":
            _check_server(location, patience)
        return Objects(errand, secret, patience)

    def _open_azure(self, errand: Errand, secret: Secret) -> Transport:
        from das_gpu.transports.blobs import Blobs

        return Blobs(errand, secret, self.access.patience)

    @property
    def is_local(self) -> bool:
        """Whether all that is read is on this machine."""
        index = self._index
        return self.location.is_local if index is None else self._patiently(index.is_local)

    def index(self) -> Document | None:
        """The index file that the location is; None where it is a folder; raises as `get` does."""
        return None if self._index is None else self._patiently(self._index.document)

    def get(
        self,
        key: str,
        *,
        check: CheckSize = lambda _: None,
        part: Part | None = None,
    ) -> memoryview | None:
        """Read an object, or a part of it.

        Parameters
        ----------
        key : str
            Below the location.
        check : callable
            Told the number of bytes before they are read; what it raises ends the reading.
        part : (int, int or None), optional
            First and last-but-one byte; a negative start counts from the end.

        Returns
        -------
        memoryview or None
            The bytes, in memory that this thread's next `get` may use again; None when there is
            no such object.

        Raises
        ------
        SourceError, AccessDeniedError
            The object cannot be had, or the store refuses.
        InterruptedRunError
            See `das_gpu.patience.cancelled_by`.
        """
        throttled = False

        def attempt(watch: Watch) -> memoryview | None:
            nonlocal throttled
            transport = self._showing_headers() if throttled else self._transport
            try:
                return transport.get(key, check, watch, part)
            except Absent:
                return None
            except Transient as failure:
                throttled = throttled or failure.throttled
                raise

        body = self._patiently(attempt)
        if body is not None:
            self._had = (key, time.monotonic())
        return body

    def stamp(self, key: str) -> Stamp | None:
        """Size and version of an object, None when there is none; raises as `get` does."""

        def attempt(_: Watch) -> Stamp | None:
            try:
                return self._transport.stamp(key)
            except Absent:
                return None

        return self._patiently(attempt)

    def children(self) -> tuple[list[str], list[str]]:
        """Names of folders, and of objects, directly below the location; raises as `get` does."""
        return self._patiently(lambda _: self._transport.children())

    def container_facts(self) -> dict[str, str] | None:
        """What Azure says of the container; None elsewhere, and where it says nothing."""
        if self.location.scheme != "azure":
            return None
        from das_gpu.azure import container_client, container_facts

        with container_client(self._errand, self._secret, self.access.patience) as client:
            return container_facts(client)

    def is_alive(self, since_s: float) -> bool:
        """Whether an object was had since a time of ``time.monotonic``, or can be had again now.

        It tells an object that cannot be had from a store that has failed.
        """
        with self._asking:
            key, had_s = self._had
            if not key or had_s > since_s or self._failed_s > since_s:
                return had_s > since_s
            patience = self.access.patience
            watch = Watch(patience, time.monotonic() + patience.stall_s)
            try:
                self._transport.get(key, lambda _: None, watch)
            except (Absent, Transient, DasGpuError):
                self._failed_s = time.monotonic()
                return False
            self._had = (key, time.monotonic())
            return True

    def _patiently(self, attempt: Callable[[Watch], _T]) -> _T:
        try:
            return patiently(attempt, self.access.patience)
        except GaveUp as end:
            error = end.last.error
            raise type(error)(f"{error} {end}") from end

    def _showing_headers(self) -> Transport:
        """The transport that sees a ``Retry-After``; obstore keeps such headers to itself."""
        if self.location.scheme != "azure" or self._index is not None:
            return self._transport
        with self._opening:
            if self._second is None:
                self._second = self._open_azure(self._errand, self._secret)
        return self._second


def secret_for(location: Location, credential: Credential) -> Secret:
    """Find what is sent to a location.

    What the environment holds for an account goes to Azure's servers only, or to the one that
    its connection string names: anybody can call a server ``ACCOUNT.blob.example.com``.
    """
    if location.scheme != "azure":
        return ANONYMOUS
    named = credential.connection().get("blobendpoint", "").rstrip("/")
    unknown = not (location.is_known_service or location.endpoint == named)
    if credential.kind == "auto" and unknown:
        secret = ANONYMOUS
    else:
        secret = credential.resolve(location.account)
    origin = {"found_in": secret.origin} if secret.origin else {}
    _log.info("credential", extra=facts(place=str(location), kind=secret.kind, **origin))
    return secret


def _check_server(location: Location, patience: Patience) -> None:
    """Fail at once for a server that isn't there; trying again is for servers that are."""
    from urllib.request import getproxies, proxy_bypass

    url = urlsplit(location.endpoint)
    host, port = url.hostname or "", url.port or 443
    if url.scheme == "https" and {"https", "all"} & getproxies().keys() and not proxy_bypass(host):
        return
    try:
        socket.create_connection((host, port), timeout=patience.connect_s).close()
    except OSError as error:
        raise SourceNotFoundError(
            f"No connection to {host}, port {port}, for {location}: {error.strerror or error}. "
            "Check the account's name, the network and the proxy settings."
        ) from error


def refuse_shared_secret(*places: tuple[str | Path, Access]) -> None:
    """Refuse to send one account's secret to the other.

    Raises
    ------
    UsageError
        When the environment's secret would go to more than one account.
    """
    auto = (how.locate(place) for place, how in places if how.credential.kind == "auto")
    refuse_ambiguous({place.account for place in auto if place.scheme == "azure"})
