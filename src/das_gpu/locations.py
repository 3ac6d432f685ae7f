"""URLs and paths -> where bytes are read from and written to.

A :class:`Location` names a place and holds no secret, so it may be printed, pickled and put
into a manifest.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from das_gpu.credentials import Credential
from das_gpu.errors import UsageError

Scheme = Literal["file", "azure", "s3", "gs"]

_FORMS = (
    "a folder, file://FOLDER, https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX, "
    "az://CONTAINER/PREFIX, http://127.0.0.1:PORT/ACCOUNT/CONTAINER/PREFIX (emulator), "
    "s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
)
_AZURE_DOMAINS = (
    ".blob.core.windows.net",
    ".blob.storage.azure.net",
    ".blob.core.usgovcloudapi.net",
    ".blob.core.chinacloudapi.cn",
)
_AZURE_HOST = re.compile(r"(?P<account>[a-z0-9-]+)\.(?:z\d+\.)?blob\.[a-z0-9.-]+")


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
    def is_known_service(self) -> bool:
        """True for Azure's own servers, and for an emulator on this machine."""
        host = urlsplit(self.endpoint).hostname or ""
        return host.endswith(_AZURE_DOMAINS) or _is_loopback(host)

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


def parse_location(
    text: str | Path, *, account: str = "", credential: Credential | None = None
) -> Location:
    """Understand a path or URL.

    Parameters
    ----------
    text : str or Path
        One of the forms in the error message below.
    account : str
        Storage account of an ``az://`` URL; by default that of the connection string, else of
        the environment variable AZURE_STORAGE_ACCOUNT_NAME.
    credential : Credential, optional
        Its connection string may name the account and its address.

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
    except ValueError:  # whose text quotes the URL, which may hold a password
        raise UsageError(f"The URL cannot be understood. Known forms: {_FORMS}.") from None
    host = (url.hostname or "").lower()
    shown = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    if url.query or url.fragment or "@" in url.netloc:
        raise UsageError(
            f"{shown} was given with a user name, query or signature. A secret in a URL ends up in "
            "process lists and logs: give the URL without it, put a shared access signature (what "
            "follows the '?') into a file or an environment variable, and name that with "
            "--credential sas:NAME or sas:@FILE."
        )
    if url.scheme == "file" and host in ("", "localhost"):
        return Location("file", "", str(Path(unquote(url.path)).resolve()))
    parts = [unquote(part) for part in url.path.split("/") if part]
    if ".." in parts or "." in parts:
        raise UsageError(f"{shown} has '.' or '..' in its path; give the plain path.")
    if url.scheme in ("s3", "gs") and host:
        return Location("s3" if url.scheme == "s3" else "gs", url.netloc, "/".join(parts))
    if url.scheme == "az" and host:
        named = _named_account(shown, account, credential or Credential())
        return _on_azure(named, [url.netloc, *parts], shown)
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


def _named_account(shown: str, account: str, credential: Credential) -> tuple[str, str]:
    """Account and endpoint for ``az://``: asked for, the connection string's, the environment's."""
    named = credential.connection()
    name = account or named.get("accountname") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    if not name:
        raise UsageError(
            f"{shown} does not say which account holds the container. Give --account NAME, set the "
            "environment variable AZURE_STORAGE_ACCOUNT_NAME, or write "
            "https://ACCOUNT.blob.core.windows.net/CONTAINER."
        )
    if named.get("accountname", name) != name:
        named = {}
    suffix = named.get("endpointsuffix", "core.windows.net")
    endpoint = named.get("blobendpoint", f"https://{name}.blob.{suffix}").rstrip("/")
    url = urlsplit(endpoint)
    if url.query or url.fragment or "@" in url.netloc:
        raise UsageError(
            "The connection string's BlobEndpoint holds a user name, a query or a signature. Give "
            "the plain address there, and a signature as SharedAccessSignature=."
        )
    if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.hostname or "")):
        raise UsageError(
            f"The connection string names the endpoint {url.scheme}://{url.netloc}; only https is "
            "used to reach another machine."
        )
    return name, endpoint


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
