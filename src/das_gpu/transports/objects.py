"""Reading through obstore: Azure, S3, Google Cloud Storage."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from das_gpu.answers import STATUSES, Errand, Kind
from das_gpu.credentials import Secret, token
from das_gpu.errors import AccessDeniedError, SourceError, SourceNotFoundError, UsageError
from das_gpu.patience import RETRIED, Patience, Transient, Watch
from das_gpu.redaction import scrub
from das_gpu.transports import Absent, Changed, CheckSize, Part, Stamp, scratch

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

MEANINGS: Mapping[str, tuple[Kind, str]] = {
    "FileNotFoundError": STATUSES[404],
    "NotFoundError": STATUSES[404],
    "PermissionError": STATUSES[403],
    "PermissionDeniedError": STATUSES[403],
    "UnauthenticatedError": STATUSES[401],
    "InvalidPathError": (UsageError, "the name is not a valid key"),
    "UnknownConfigurationKeyError": (UsageError, "a store setting is not known"),
    "NotSupportedError": (SourceError, "the store does not offer this operation"),
    "AlreadyExistsError": (SourceError, "the store reports a conflict"),
    "PreconditionError": (SourceError, "the store refuses a precondition"),
    "NotModifiedError": (SourceError, "the store answers 'not modified'"),
    "JoinError": (SourceError, "the reader was stopped"),
    "GenericError": (SourceError, "the store failed"),
    "BaseError": (SourceError, "the store failed"),
}
"""Of obstore's exceptions, by name."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_THROTTLING = (429, 503)
_NETWORK = re.compile(r"HTTP error: ([^\n]*)")


class Objects:
    """A container or bucket, as a `das_gpu.transports.Transport`.

    Parameters
    ----------
    errand : Errand
        What is read, for messages.
    secret : Secret
        For Azure; the other clouds' variables are read by obstore.
    patience : Patience
    """

    def __init__(self, errand: Errand, secret: Secret, patience: Patience) -> None:
        from obstore.exceptions import BaseError

        self._errand = errand
        try:
            self._store = _open(errand, secret, patience)
        except (BaseError, ValueError) as error:
            raise self._failed("", error) from error

    def get(
        self,
        key: str,
        check: CheckSize,
        watch: Watch,
        part: Part | None = None,
        version: str | None = None,
    ) -> memoryview:
        """Download an object into this thread's memory."""
        import obstore
        from obstore.exceptions import BaseError

        size, received = -1, 0
        try:
            answer = obstore.get(self._store, key, options=self._options(key, part, version))
            first, last = answer.range
            size = last - first
            check(size)
            body = scratch(size)
            # As they come from the network: a larger piece would be waited for, however slowly
            # it comes, and the watch would see nothing.
            for piece in answer.stream(min_chunk_size=1):
                body[received : received + len(piece)] = piece
                received += len(piece)
                if (verdict := watch.verdict(received)) is not None:
                    raise self._broken(key, verdict)
        except (BaseError, OSError) as error:
            if size < 0:
                raise self._failed(key, error) from error
            scrub(error)
            found = f"it broke off after {received} of {size} bytes: {_first_line(error)}"
            raise self._broken(key, found) from error
        if received != size:
            raise self._broken(key, f"it has {received} of {size} bytes")
        return body

    def stamp(self, key: str) -> Stamp:
        """Size and entity tag of an object."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            found = obstore.head(self._store, key)
        except (BaseError, OSError) as error:
            raise self._failed(key, error) from error
        return Stamp(found["size"], found["e_tag"] or "")

    def children(self) -> tuple[list[str], list[str]]:
        """Names of prefixes and objects directly below the location."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            listing = obstore.list_with_delimiter(self._store)
        except (BaseError, OSError) as error:
            raise self._failed("", error) from error
        folders = [prefix.rstrip("/").rpartition("/")[2] for prefix in listing["common_prefixes"]]
        return folders, [item["path"].rpartition("/")[2] for item in listing["objects"]]

    def _options(self, key: str, part: Part | None, version: str | None) -> Any:
        """A byte range in obstore's terms; for Azure it does not count from the end."""
        import obstore

        wanted = {} if version is None else {"if_match": version}
        if part is None:
            return wanted or None
        start, stop = part
        if start < 0 and self._errand.location.scheme == "azure":
            start = max(0, start + obstore.head(self._store, key)["size"])
        if start < 0:
            return wanted | {"range": {"suffix": -start}}
        return wanted | {"range": {"offset": start} if stop is None else (start, stop)}

    def _broken(self, key: str, found: str) -> Transient:
        error = self._errand.failed(key, SourceError, "the answer is not whole", found)
        return Transient(error, answered=True)

    def _failed(self, key: str, error: Exception) -> Exception:
        """What an exception of obstore means."""
        scrub(error)
        text = str(error)
        code = _CODE.search(text)
        if (found := _STATUS.search(text)) is not None:
            status = int(found[1])
            if status == 404 and key:
                return Absent()
            if status == 412 and key:
                return Changed()
            failed = self._errand.answered(key, status, code[1] if code else "")
            # obstore does not show the header that says for how long.
            throttled = status in _THROTTLING
            return Transient(failed, throttled=throttled) if status in RETRIED else failed
        names = (cls.__name__ for cls in type(error).__mro__)
        kind, meaning = next(MEANINGS[name] for name in (*names, "BaseError") if name in MEANINGS)
        if kind is SourceNotFoundError and key:
            return Absent()
        if type(error).__name__ == "PreconditionError" and key:
            return Changed()
        if code and code[1] == "PublicAccessNotPermitted":
            kind, meaning = STATUSES[403]
        if "InvalidCertificate" in text:
            meaning = "the server's certificate is not trusted"
            return self._errand.failed(key, SourceError, meaning)
        if (network := _NETWORK.search(text)) is not None and kind is not AccessDeniedError:
            failed = self._errand.failed(key, kind, "the store cannot be reached", network[1])
            return Transient(failed)
        return self._errand.failed(key, kind, meaning, _first_line(error))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _open(errand: Errand, secret: Secret, patience: Patience) -> AzureStore | S3Store | GCSStore:
    """Make obstore's store; it reads nothing. Trying again is left to us, who see more."""
    from obstore import store as stores

    location = errand.location
    how: Any = {
        "prefix": location.prefix or None,
        "client_options": {
            # Bodies are ended earlier, by the watch; what a refusal says is read by obstore,
            # which would wait for every byte of it.
            "timeout": f"{patience.total_s}s",
            "connect_timeout": f"{patience.connect_s}s",
            "read_timeout": f"{patience.stall_s}s",
            "allow_http": location.endpoint.startswith("http://"),
        },
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=patience.total_s)},
    }
    match location.scheme:
        case "azure":
            # obstore reads some thirty variables of the environment by itself. These settings
            # win over them: without one or the other it would follow a variable to another
            # server or identity, or ask the metadata address for a token.
            config: Any = {
                "account_name": location.account,
                "endpoint": location.endpoint,
                "use_emulator": False,
                "skip_signature": secret.kind == "anonymous",
            }
            if location.endpoint.startswith("http://"):
                # A server of this machine: no proxy is to be told, in clear, what is sent to it.
                # Excluded from one proxy, it is not sought by those of the environment.
                host = urlsplit(location.endpoint).hostname
                how["client_options"] |= {"proxy_url": location.endpoint, "proxy_excludes": host}
            if secret.kind != "anonymous":
                how["credential_provider"] = _provider(secret)
            return stores.AzureStore(location.container, config=config, **how)
        case "s3":
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            config = {
                "skip_signature": not os.environ.get("AWS_ACCESS_KEY_ID"),
                "region": region or "us-east-1",
            }
            return stores.S3Store(location.container, config=config, **how)
        case _:
            names = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT")
            config = {"skip_signature": not any(os.environ.get(name) for name in names)}
            return stores.GCSStore(location.container, config=config, **how)


def _provider(secret: Secret) -> Callable[[], Any]:
    """What obstore calls for a credential: once, or when a token expires."""

    def provide() -> dict[str, Any]:
        if secret.kind == "key":
            return {"access_key": secret.value, "expires_at": None}
        if secret.kind == "sas":
            return {"sas_token": secret.value, "expires_at": None}
        text, expires_s = token(secret.chain)
        return {"token": text, "expires_at": datetime.fromtimestamp(expires_s, UTC)}

    return provide
