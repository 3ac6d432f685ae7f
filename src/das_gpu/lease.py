"""One run at a time writes below a prefix of a container: held by a lease on one blob.

The service gives a lease to one client, for a time, and takes it back by itself when it is not
renewed: so a killed run bars others for that time at most. The blob ``run.lock`` carries the
lease, and says to people who holds it. Its entity tag tells whether somebody else has held it
since: only a holder writes it. Other blobs know nothing of the lease.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import uuid4

from das_gpu.errors import AccessDeniedError, DasGpuError, InterruptedRunError
from das_gpu.lock import LOCK_KEY, SOMEBODY, Hold, Holder, in_use, refuse_foreign
from das_gpu.patience import Patience, Watch, cancelled_by

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_WRITE = "create and write"
_BRIEF = Patience.within(10.0)
"""For what would be good to have, at the end: a lease ends by itself anyway."""
_AT_ONCE = 5
"""Times to try again without a pause, because the lease has just become free."""
_NO_BLOB = "BlobNotFound"
_OF_STATE = (_NO_BLOB, "BlobAlreadyExists", "ConditionNotMet")
_OF_LEASE = "Lease"


class Ask(Protocol):
    """Makes a request patiently, and explains why it could not be made."""

    def __call__(
        self,
        right: str,
        key: str,
        request: Callable[[Watch], _T],
        patience: Patience | None = None,
    ) -> _T:
        """See `das_gpu.blobsink.BlobSink`; ``right`` is what the credential must allow."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a lease lasts, and how it is kept.

    Attributes
    ----------
    length_s : int
        Its length; the service gives 15 to 60 s.
    renew_s : float
        Time between two renewals.
    wait_s : float
        Longest wait for another run's lease to end: longer than its length, so that a killed
        run's does.
    poll_s : float
        Time between two attempts, meanwhile.
    """

    length_s: int = 30
    renew_s: float = 8.0
    wait_s: float = 35.0
    poll_s: float = 1.0


TERMS = Terms()


class _Refused(Exception):  # noqa: N818 - an answer, seen by no user
    """The service does not do what was asked, because of the blob's state."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def hold_prefix(
    blob: BlobClient, ask: Ask, place: str, run: str, terms: Terms = TERMS
) -> Iterator[Hold]:
    """Keep other runs from writing below a prefix.

    Parameters
    ----------
    blob : azure.storage.blob.BlobClient
        Of `LOCK_KEY` below the prefix.
    ask : callable
        Makes a request patiently.
    place : str
        The prefix, for messages.
    run : str
        Tells this run from any other.
    terms : Terms

    Raises
    ------
    DestinationInUseError
        Another run holds it, and still did after ``wait_s``; it is named.
    DestinationError, AccessDeniedError
        The service cannot be reached, or refuses; or a blob of that name is there that das-gpu
        has not written.
    """
    lease = _Lease(blob, ask, place, run, terms)
    lease.take()
    keeper = threading.Thread(target=lease.keep, name="das-gpu-lease", daemon=True)
    try:
        keeper.start()
        yield lease.hold
    finally:
        lease.stop.set()
        keeper.join(_BRIEF.total_s)
        lease.give_back()


def prefix_holder(blob: BlobClient, ask: Ask) -> Holder | None:
    """Who holds a prefix now; None when nobody does. Changes nothing.

    Raises
    ------
    DestinationError, AccessDeniedError
        The service cannot be reached, or refuses.
    """
    try:
        found = ask("read", LOCK_KEY, lambda _: _answer(blob.get_blob_properties))
        if found.lease.state != "leased":
            return None
        return Holder.from_json(_read(blob, ask)[0]) or SOMEBODY
    except _Refused:
        return None


class _Lease:
    """One run's lease, from the first attempt to the end."""

    def __init__(self, blob: BlobClient, ask: Ask, place: str, run: str, terms: Terms) -> None:
        self._blob, self._ask, self._place, self._terms = blob, ask, place, terms
        # Ours to choose: a request whose answer was lost can be made again.
        self._id = str(uuid4())
        self._etag = ""
        self._ends_s = 0.0
        self.hold = Hold(run)
        self.stop = threading.Event()

    def take(self) -> None:
        """Get the lease, or raise `DestinationInUseError`."""
        deadline = time.monotonic() + self._terms.wait_s
        told = False
        at_once = _AT_ONCE
        while not self._try():
            holder = self._remove_dead()
            if holder is None and at_once:
                at_once -= 1
                continue
            if time.monotonic() + self._terms.poll_s > deadline:
                raise in_use(self._place, holder or SOMEBODY)
            if not told:
                told = True
                _log.warning(
                    "%s is held by %s. If that run was killed, its hold ends by itself: waiting "
                    "up to %.0f s for that.",
                    *(self._place, holder or SOMEBODY, self._terms.wait_s),
                )
            time.sleep(self._terms.poll_s)

    def _try(self) -> bool:
        """Take the lease if it is free, and say who has it."""
        data = Holder.here(self.hold.run).to_json()
        with suppress(_Refused):  # because it is there
            self._put(data, overwrite=False)
        try:
            self._acquire()
        except _Refused:
            return False
        try:
            content, _ = _read(self._blob, self._ask)
            refuse_foreign(self._place, content)
            self._etag = self._put(data, overwrite=True, lease=self._id)["etag"]
        except _Refused:  # somebody took this process for a dead one, by what the blob said
            return False
        except BaseException:
            self.give_back(delete=False)
            raise
        return True

    def _put(self, data: bytes, **how: Any) -> dict[str, Any]:
        from azure.storage.blob import ContentSettings

        kind = ContentSettings(content_type="application/json")
        return self._request(self._blob.upload_blob, data, content_settings=kind, **how)

    def _acquire(self, patience: Patience | None = None, **only_if: Any) -> None:
        asked_s = time.monotonic()
        length_s = self._terms.length_s
        self._request(self._client().acquire, length_s, patience=patience, **only_if)
        self._ends_s = asked_s + length_s

    def _remove_dead(self) -> Holder | None:
        """Who has the lease; None when it may be free: that of a dead process is broken."""
        try:
            content, etag = _read(self._blob, self._ask)
            holder = Holder.from_json(content) or SOMEBODY
            if not holder.is_dead:
                return holder
            # Only while the blob says so: whoever has it next writes it first.
            self._request(self._client().break_lease, 0, **_unchanged(etag))
        except _Refused:
            return None
        _log.warning("Taking %s over from %s, which is no more.", self._place, holder)
        return None

    def keep(self) -> None:
        """Renew the lease until stopped, or until it is lost."""
        pause_s = self._terms.renew_s
        with cancelled_by(self.stop):
            while not self.stop.wait(pause_s):
                try:
                    self._renew()
                    pause_s = self._terms.renew_s
                except InterruptedRunError:
                    return
                except _Refused as refused:
                    self.hold.lose(self._who_has_it(refused.code))
                    return
                except DasGpuError as error:
                    if isinstance(error, AccessDeniedError) and time.monotonic() > self._ends_s:
                        self.hold.lose(f"The hold on {self._place} cannot be renewed: {error}")
                        return
                    _log.warning("The hold on %s is not renewed yet: %s", self._place, error)
                    pause_s = min(self._terms.poll_s, self._terms.renew_s)
                except Exception as error:
                    self.hold.lose(f"The hold on {self._place} cannot be renewed: {error!r}")
                    raise

    def _renew(self) -> None:
        asked_s = time.monotonic()
        patience = Patience.within(max(self._ends_s - asked_s, self._terms.poll_s))
        try:
            self._request(self._client().renew, patience=patience, **_unchanged(self._etag))
        except _Refused as refused:
            if refused.code == _NO_BLOB or asked_s < self._ends_s:
                raise
            # It had run out, because the service could not be reached.
            self._acquire(patience, **_unchanged(self._etag))
        else:
            self._ends_s = asked_s + self._terms.length_s

    def _who_has_it(self, code: str) -> str:
        """Say to whom the lease was lost."""
        lost = f"The hold on {self._place} was lost"
        if code == _NO_BLOB:
            return f"{lost}: its {LOCK_KEY} was deleted."
        holder = None
        with suppress(DasGpuError, _Refused):
            holder = Holder.from_json(_read(self._blob, self._ask, _BRIEF)[0])
        if holder is None or holder.run == self.hold.run:
            return f"{lost}: somebody broke its lease ({code})."
        return f"{lost} to {holder} ({code})."

    def give_back(self, *, delete: bool = True) -> None:
        """Delete the blob, or else end the lease; what cannot be done, time will do."""
        try:
            with suppress(AccessDeniedError):  # a run needs no right to delete
                if delete:
                    self._request(self._blob.delete_blob, lease=self._id, patience=_BRIEF)
                    return
            self._request(self._client().release, patience=_BRIEF)
        except _Refused:
            return  # it was lost
        except DasGpuError as error:
            _log.warning("The hold on %s was not given back: %s", self._place, error)

    def _client(self) -> Any:
        from azure.storage.blob import BlobLeaseClient

        return BlobLeaseClient(self._blob, self._id)

    def _request(
        self, act: Callable[..., _T], /, *args: Any, patience: Patience | None = None, **how: Any
    ) -> _T:
        return self._ask(_WRITE, LOCK_KEY, lambda _: _answer(act, *args, **how), patience)


def _read(blob: BlobClient, ask: Ask, patience: Patience | None = None) -> tuple[bytes, str]:
    """Content and entity tag of the lock's blob."""

    def read(_: Watch) -> tuple[bytes, str]:
        found: Any = _answer(blob.download_blob)
        return found.readall(), found.properties.etag

    return ask("read", LOCK_KEY, read, patience)


def _answer(act: Callable[..., _T], /, *args: Any, **how: Any) -> _T:
    """Make a request; raise `_Refused` when the blob's state is against it."""
    from azure.core.exceptions import HttpResponseError

    try:
        return act(*args, **how)
    except HttpResponseError as error:
        code = getattr(error, "error_code", None)
        text = str(getattr(code, "value", code) or "")
        if text in _OF_STATE or text.startswith(_OF_LEASE):
            raise _Refused(text) from error
        raise


def _unchanged(etag: str) -> dict[str, Any]:
    """Conditions for a request that is to fail once somebody has written the blob."""
    from azure.core import MatchConditions

    return {"etag": etag, "match_condition": MatchConditions.IfNotModified}
