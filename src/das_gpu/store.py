"""Stores behind locations: opened with credentials, their exceptions translated.

Credentials are looked up in the environment where a store is opened:

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
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from das_gpu.errors import (
    AccessDeniedError,
    DasGpuError,
    SourceError,
    SourceNotFoundError,
    UsageError,
)
from das_gpu.locations import Location, connection_string

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_CONNECT_S = 10


def azure_credential(location: Location) -> dict[str, str]:
    """Credential for an Azure location, from the environment.

    Returns
    -------
    dict
        ``{"account_key": ...}``, ``{"sas_token": ...}`` (no leading ``?``), or empty for
        anonymous access. The values are secret.
    """
    named = connection_string()
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

    how: Any = {
        "prefix": location.prefix or None,
        "client_options": {
            # `timeout` covers a whole body; a body cut by it is resumed where it stopped.
            "timeout": "120s",
            "connect_timeout": f"{_CONNECT_S}s",
            "read_timeout": "10s",
            "allow_http": location.endpoint.startswith("http://"),
        },
        "retry_config": {
            "max_retries": 100,
            "retry_timeout": timedelta(seconds=patience_s),
            "backoff": {
                "init_backoff": timedelta(seconds=1),
                "max_backoff": timedelta(seconds=15),
                "base": 2,
            },
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
                return stores.AzureStore(location.container, config=config, **how)
            case "s3":
                region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
                config = {
                    "skip_signature": not os.environ.get("AWS_ACCESS_KEY_ID"),
                    "region": region or "us-east-1",
                }
                return stores.S3Store(location.container, config=config, **how)
            case "gs":
                names = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT")
                config = {"skip_signature": not any(os.environ.get(name) for name in names)}
                return stores.GCSStore(location.container, config=config, **how)
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
