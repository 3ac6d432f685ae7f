"""Azure's own client library: a container's client, and what its exceptions mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from das_gpu.answers import Errand
from das_gpu.credentials import Secret
from das_gpu.errors import AccessDeniedError, SourceError, UsageError
from das_gpu.patience import RETRIED, Patience, Transient, parse_retry_after
from das_gpu.redaction import guard, scrub

if TYPE_CHECKING:
    from azure.core.pipeline.transport import RequestsTransport
    from azure.storage.blob import ContainerClient

BLOCK_BYTES = 64 << 10
"""Read from the socket at a time: the library's 4 kB cost twice the processor time."""
_WHOLE = 1 << 31


def container_client(errand: Errand, secret: Secret, patience: Patience) -> ContainerClient:
    """Make a client of the location's container; it sends nothing.

    Trying again is left to `das_gpu.patience.patiently`: the library neither repeats after
    429 nor waits for a ``Retry-After``.
    """
    from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
    from azure.storage.blob import ContainerClient

    guard()
    location = errand.location
    if secret.kind == "token" and not location.endpoint.startswith("https://"):
        raise errand.failed("", UsageError, "Azure's library sends tokens over https only")
    credential: Any = None
    match secret.kind:
        case "key":
            credential = AzureNamedKeyCredential(location.account, secret.value)
        case "sas":
            credential = AzureSasCredential(secret.value)
        case "token":
            credential = secret.chain
    try:
        return ContainerClient(
            location.endpoint,
            location.container,
            credential=credential,
            transport=_transport(location.endpoint, patience),
            retry_total=0,
            max_single_get_size=_WHOLE,
            max_chunk_get_size=_WHOLE,
        )
    except ValueError as error:
        scrub(error)
        unsound = "the address or the credential is not sound"
        raise errand.failed("", SourceError, unsound, str(error)) from error


def _transport(endpoint: str, patience: Patience) -> RequestsTransport:
    """What sends the library's requests: of the environment, it takes proxies and certificates.

    Left to itself it would also take a password from ~/.netrc, and send that in the place of our
    signature; and it would reach a server of this machine through a proxy, in clear.
    """
    from azure.core.pipeline.transport import RequestsTransport

    transport = RequestsTransport(
        connection_timeout=patience.connect_s,
        read_timeout=patience.stall_s,
        connection_data_block_size=BLOCK_BYTES,
        use_env_settings=endpoint.startswith("https://"),
    )
    transport.open()
    transport.session.auth = _as_signed
    return transport


def _as_signed(request: Any) -> Any:
    return request


def explain(error: Exception, errand: Errand, key: str = "") -> Exception:
    """What an exception of the library means.

    Parameters
    ----------
    error : azure.core.exceptions.AzureError or ValueError
    errand : Errand
    key : str
        The object, when it is one.

    Returns
    -------
    Transient or DasGpuError
    """
    from azure.core.exceptions import ClientAuthenticationError

    scrub(error)
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is None:
        found = next(iter(str(error).splitlines()), "") or type(error).__name__
        if isinstance(error, ClientAuthenticationError):  # azure-identity's, before any request
            return errand.failed(key, AccessDeniedError, "no identity was found", found)
        if "CERTIFICATE_VERIFY_FAILED" in found:
            return errand.failed(key, SourceError, "the server's certificate is not trusted", found)
        return Transient(errand.failed(key, SourceError, "the store cannot be reached", found))
    code = getattr(error, "error_code", None)  # a member of an enumeration, or a plain text
    failed = errand.answered(key, status, str(getattr(code, "value", code) or ""))
    if status not in RETRIED:
        return failed
    return Transient(failed, retry_after_s=parse_retry_after(response.headers.get("Retry-After")))


def container_facts(client: ContainerClient) -> dict[str, str] | None:
    """Who may read a container without credentials, and when it was last changed.

    None where its properties are not for us: a container may be public for reading its blobs and
    closed for everything else.
    """
    from azure.core.exceptions import AzureError

    try:
        found = client.get_container_properties()
    except AzureError:
        return None
    public = {"container": "public, may be listed", "blob": "public, by name only"}
    return {
        "access": public.get(str(found.public_access or ""), "private"),
        "last_modified": found.last_modified.isoformat(),
    }
