"""URLs and paths -> where bytes are read from and written to.

A :class:`Location` names a place and holds no secret, so it may be printed, pickled and put
into a manifest. Credentials are looked up in the environment where a store is opened:

- ``AZURE_STORAGE_CONNECTION_STRING``, else ``AZURE_STORAGE_ACCOUNT_KEY``, else
  ``AZURE_STORAGE_SAS_TOKEN``. They are used only for the account that the connection string or
  ``AZURE_STORAGE_ACCOUNT_NAME`` names, when one of them does: signing with another account's
  key would lock us out of a public container.
- ``s3://`` and ``gs://``: the vendors' own variables.

Without one of these, reading is anonymous. The cloud's metadata address is never asked.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from das_gpu.errors import (
    AccessDeniedError,
    DasGpuError,
    SourceError,
    SourceNotFoundError,
    UsageError,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Scheme = Literal["file", "azure", "s3", "gs"]

_FORMS = (
    "a folder, file://FOLDER, https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX, "
    "az://CONTAINER/PREFIX, http://127.0.0.1:PORT/ACCOUNT/CONTAINER/PREFIX (emulator), "
    "s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
)
_AZURE_HOST = re.compile(r"(?P<account>[a-z0-9-]+)\.(?:z\d+\.)?blob\.[a-z0-9.-]+")
_CONNECT_S = 10


@dataclass(frozen=True, slots=True)
class Location:
    """A place where objects are stored. Holds no secret.

    Attributes
    ----------
    scheme : {"file", "azure", "s3", "gs"}
        Kind of store.
    container : str
        Azure container or bucket; empty for a local folder.
    prefix : str
        Key prefix without leading or trailing slash, or the absolute path of a local folder.
    account, endpoint : str
        Azure account name and service URL (``https://ACCOUNT.blob...`` or, for an emulator,
        ``http://HOST:PORT/ACCOUNT``); else empty.
    """

    scheme: Scheme
    container: str
    prefix: str
    account: str = ""
    endpoint: str = ""

    @property
    def is_local(self) -> bool:
        """True for a folder of this machine."""
        return self.scheme == "file"

    @property
    def path(self) -> Path:
        """The local folder; :class:`UsageError` for any other place."""
        if not self.is_local:
            raise UsageError(f"{self} is not a local folder.")
        return Path(self.prefix)

    def child(self, name: str) -> Location:
        """Give the place ``name`` below this one."""
        return replace(self, prefix=f"{self.prefix.rstrip('/')}/{name}" if self.prefix else name)

    def __str__(self) -> str:
        if self.is_local:
            return self.prefix
        base = self.endpoint if self.scheme == "azure" else f"{self.scheme}:/"
        return "/".join(part for part in (base, self.container, self.prefix) if part)


def parse_location(text: str | Path) -> Location:
    """Understand a path or URL.

    Parameters
    ----------
    text : str or Path
        One of the forms in the error message below.

    Raises
    ------
    UsageError
        The text is of no known form, names no container, carries a secret, or asks for plain
        http to another machine.

    Examples
    --------
    >>> str(parse_location("s3://bucket/a/b.zarr/"))
    's3://bucket/a/b.zarr'
    """
    if isinstance(text, Path) or "://" not in text:
        if not str(text).strip():
            raise UsageError(f"No place was given. Known forms: {_FORMS}.")
        return Location("file", "", str(Path(text).expanduser().resolve()))
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as exc:
        raise UsageError(f"The URL cannot be understood: {exc}. Known forms: {_FORMS}.") from exc
    host = (url.hostname or "").lower()
    shown = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    if url.query or url.fragment or "@" in url.netloc:
        raise UsageError(
            f"{shown} was given with a user name, query or signature. A secret in a URL ends up in "
            "process lists and logs: give the URL without it, and a shared access signature (what "
            "follows the '?') in the environment variable AZURE_STORAGE_SAS_TOKEN."
        )
    if url.scheme == "file" and host in ("", "localhost"):
        return Location("file", "", str(Path(unquote(url.path)).resolve()))
    parts = [unquote(part) for part in url.path.split("/") if part]
    if ".." in parts or "." in parts:
        raise UsageError(f"{shown} has '.' or '..' in its path; give the plain path.")
    if url.scheme in ("s3", "gs") and host:
        return Location("s3" if url.scheme == "s3" else "gs", url.netloc, "/".join(parts))
    if url.scheme == "az" and host:
        return _on_azure(_default_account(shown), [url.netloc, *parts], shown)
    if url.scheme in ("http", "https"):
        return _parse_http(url, host, port, parts, shown)
    raise _unknown(shown)


def _unknown(shown: str) -> UsageError:
    return UsageError(f"{shown} is not a place that can be read or written. Known forms: {_FORMS}.")


def _parse_http(
    url: SplitResult, host: str, port: int | None, parts: list[str], shown: str
) -> Location:
    """Tell the emulator's form (account in the path) from the service's (in the host)."""
    if url.scheme == "http" and not _is_loopback(host):
        raise UsageError(
            f"{shown} asks for plain http to another machine, which would send data and "
            "credentials unprotected. Plain http is for an emulator on 127.0.0.1; use https."
        )
    match = _AZURE_HOST.fullmatch(host)
    if url.scheme == "https" and match and port in (None, 443):
        return _on_azure((match["account"], f"https://{host}"), parts, shown)
    if port is None or not parts:
        raise _unknown(shown)
    return _on_azure((parts[0], f"{url.scheme}://{url.netloc}/{parts[0]}"), parts[1:], shown)


def _on_azure(account: tuple[str, str], parts: list[str], shown: str) -> Location:
    if not parts:
        raise UsageError(f"{shown} names no container. Known forms: {_FORMS}.")
    name, endpoint = account
    return Location("azure", parts[0], "/".join(parts[1:]), name, endpoint)


def _default_account(shown: str) -> tuple[str, str]:
    """Account and endpoint for ``az://``: the connection string's, or the named account's."""
    named = _connection_string()
    account = named.get("accountname") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    if not account:
        raise UsageError(
            f"{shown} does not say which account holds the container. Set the environment variable "
            "AZURE_STORAGE_ACCOUNT_NAME, or write https://ACCOUNT.blob.core.windows.net/CONTAINER."
        )
    suffix = named.get("endpointsuffix", "core.windows.net")
    endpoint = named.get("blobendpoint", f"https://{account}.blob.{suffix}").rstrip("/")
    if endpoint.startswith("http://") and not _is_loopback(urlsplit(endpoint).hostname or ""):
        raise UsageError(
            f"AZURE_STORAGE_CONNECTION_STRING names the plain http endpoint {endpoint}; "
            "only https is used to reach another machine."
        )
    return account, endpoint


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connection_string() -> dict[str, str]:
    """AZURE_STORAGE_CONNECTION_STRING as a mapping with keys in lower case; may be empty."""
    text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    pairs = (part.split("=", 1) for part in text.split(";") if "=" in part)
    return {key.strip().lower(): value.strip() for key, value in pairs}


def azure_credential(location: Location) -> dict[str, str]:
    """Credential for an Azure location, from the environment.

    Returns
    -------
    dict
        ``{"account_key": ...}``, ``{"sas_token": ...}`` (no leading ``?``), or empty for
        anonymous access. The values are secret.
    """
    named = _connection_string()
    if named and named.get("accountname", location.account) == location.account:
        if key := named.get("accountkey"):
            return {"account_key": key}
        if token := named.get("sharedaccesssignature"):
            return {"sas_token": token.lstrip("?")}
    if os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", location.account) != location.account:
        return {}
    if key := os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"):
        return {"account_key": key}
    if token := os.environ.get("AZURE_STORAGE_SAS_TOKEN"):
        return {"sas_token": token.lstrip("?")}
    return {}


def open_store(location: Location, *, patience_s: float = 240.0) -> ObjectStore:
    """Open the store whose root is the location. Reads nothing.

    Parameters
    ----------
    location : Location
        Where to read.
    patience_s : float
        Seconds during which one request is tried again after failures of the server.

    Raises
    ------
    SourceNotFoundError
        The local folder, or the server, does not exist.
    SourceError
        The local path is a file.
    """
    from obstore import store as stores
    from obstore.exceptions import BaseError

    client: Any = {
        # `timeout` covers a whole body; a body cut by it is resumed where it stopped.
        "timeout": "120s",
        "connect_timeout": f"{_CONNECT_S}s",
        "read_timeout": "10s",
        "allow_http": location.endpoint.startswith("http://"),
    }
    retry: Any = {
        "max_retries": 100,
        "retry_timeout": timedelta(seconds=patience_s),
        "backoff": {
            "init_backoff": timedelta(seconds=1),
            "max_backoff": timedelta(seconds=15),
            "base": 2,
        },
    }
    try:
        match location.scheme:
            case "file":
                _check_folder(location)
                return stores.LocalStore(location.prefix)
            case "azure":
                _check_server(location)
                credential = azure_credential(location)
                config: Any = {
                    "account_name": location.account,
                    "endpoint": location.endpoint,
                    # Without this an anonymous reader asks the metadata address for a token.
                    "skip_signature": not credential,
                    **credential,
                }
                return stores.AzureStore(
                    location.container,
                    prefix=location.prefix or None,
                    config=config,
                    client_options=client,
                    retry_config=retry,
                )
            case "s3":
                anonymous = not os.environ.get("AWS_ACCESS_KEY_ID")
                region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
                return stores.S3Store(
                    location.container,
                    prefix=location.prefix or None,
                    config={"skip_signature": anonymous, "region": region or "us-east-1"},
                    client_options=client,
                    retry_config=retry,
                )
            case "gs":
                names = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT")
                anonymous = not any(os.environ.get(name) for name in names)
                return stores.GCSStore(
                    location.container,
                    prefix=location.prefix or None,
                    config={"skip_signature": anonymous},
                    client_options=client,
                    retry_config=retry,
                )
    except (BaseError, OSError, ValueError) as exc:
        raise translate(exc, location) from exc


def _check_folder(location: Location) -> None:
    path = location.path
    if path.is_dir():
        return
    if path.exists():
        raise SourceError(
            f"{location} is a file, not a folder. A Zarr archive is a folder: unpack it, or give "
            "the folder that holds .zgroup or zarr.json."
        )
    raise SourceNotFoundError(
        f"There is no folder {location}. Check the spelling and that the disk is mounted."
    )


def _check_server(location: Location) -> None:
    """Fail at once for a server that isn't there; retrying is for servers that are."""
    url = urlsplit(location.endpoint)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return
    host, port = url.hostname or "", url.port or 443
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as exc:
        raise SourceNotFoundError(
            f"No connection to {host}, port {port}, for {location}: {exc.strerror or exc}. Check "
            "the account's name, the network and the proxy settings."
        ) from exc


_MEANING: Mapping[str, tuple[type[DasGpuError], str]] = {
    "FileNotFoundError": (SourceNotFoundError, "nothing is stored there"),
    "NotFoundError": (SourceNotFoundError, "nothing is stored there"),
    "NotADirectoryError": (SourceNotFoundError, "nothing is stored there"),
    "PermissionError": (AccessDeniedError, "access is denied"),
    "PermissionDeniedError": (AccessDeniedError, "access is denied"),
    "UnauthenticatedError": (AccessDeniedError, "the credentials are not valid"),
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
_STATUS: Mapping[str, tuple[type[DasGpuError], str]] = {
    "401": _MEANING["UnauthenticatedError"],
    "403": _MEANING["PermissionDeniedError"],
    "404": _MEANING["FileNotFoundError"],
}
_ADVICE: Mapping[type[DasGpuError], str] = {
    SourceNotFoundError: "Check the spelling",
    AccessDeniedError: "Check the credentials",
    UsageError: "Correct the location",
    SourceError: "Try again; if it persists, ask who runs the store",
}


def translate(exc: Exception, location: Location, key: str = "") -> DasGpuError:
    """Say in das-gpu's terms what a store's exception means; raise the answer ``from`` it.

    Parameters
    ----------
    exc : Exception
        From obstore, or an ``OSError`` or ``ValueError``; a das-gpu error comes back unchanged.
    location : Location
        What was being read.
    key : str
        The object, when it is one.

    Returns
    -------
    DasGpuError
        ``AccessDeniedError``, ``SourceNotFoundError``, ``UsageError`` or ``SourceError``.
    """
    if isinstance(exc, DasGpuError):
        return exc
    text = str(exc)
    names = (name for name in (cls.__name__ for cls in type(exc).__mro__) if name in _MEANING)
    kind, meaning = _MEANING[next(names, "BaseError")]
    status = re.search(r"status code: (\d{3})", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if kind is SourceError and status and status[1] in _STATUS:
        kind, meaning = _STATUS[status[1]]
    if "PublicAccessNotPermitted" in text or "Permission denied" in text:
        kind, meaning = _MEANING["PermissionError"]
    if status:
        found = f"HTTP status {status[1]}" + (f", {code[1]}" if code else "")
    else:
        found = text.splitlines()[0] if text else type(exc).__name__
    advice = _ADVICE[kind]
    if location.scheme == "azure" and kind in (SourceNotFoundError, AccessDeniedError):
        how = "with the credential of" if azure_credential(location) else "anonymously; set"
        advice += (
            f". It was read {how} AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_KEY or "
            "AZURE_STORAGE_SAS_TOKEN" + (" for a private container" if "anon" in how else "")
        )
    place = f"{location}/{key}" if key else str(location)
    return kind(f"Reading {place}: {meaning} ({found}). {advice}.")
