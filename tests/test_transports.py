"""Transports: one contract for files, obstore and Azure's own library; and whom they ask."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

import obstore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from das_gpu.answers import Errand
from das_gpu.azure import explain
from das_gpu.credentials import ANONYMOUS, Credential, Secret
from das_gpu.errors import (
    AccessDeniedError,
    ChunkCorruptError,
    DasGpuError,
    InterruptedRunError,
    SourceError,
    SourceNotFoundError,
    UsageError,
)
from das_gpu.locations import parse_location
from das_gpu.patience import Patience, Transient, Watch, cancelled_by
from das_gpu.store import Access, Store
from das_gpu.transports import Absent, Changed
from das_gpu.transports.blobs import Blobs
from das_gpu.transports.files import Files
from das_gpu.transports.objects import MEANINGS, Objects
from tests.azurite import KEY, serve_blobs
from tests.faults import Answer, Bandwidth, Hang, Reset, Truncate
from tests.proxy import FaultProxy

SIGNATURE = "sv=2024-11-04&sp=r&sig=Y2FuYXJ5Y2FuYXJ5%2Bz%3D"
OBJECTS = {
    "a.zarr/.zgroup": b"{}",
    "a.zarr/ten": bytes(range(10)),
    "a.zarr/empty": b"",
    "a.zarr/RawData/0.0": os.urandom(3_000_000),
    "a.zarr/RawDataTime/0": b"time",
    "a.zarr.other/neighbour": b"not ours",
}
NETWORKS = {"obstore": Objects, "azure-sdk": Blobs}
IN_SHORT = Patience(total_s=0.5, connect_s=2, stall_s=1)


def watch(patience=None):
    patience = patience or Patience()
    return Watch(patience, time.monotonic() + patience.total_s)


def anything(_size):
    """Any size will do."""


# The contract


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("objects")
    for key, content in OBJECTS.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture(scope="module")
def container(azurite, folder):
    """A public container with the same objects."""
    azurite.create_container("transports", public="container")
    azurite.upload_folder(folder, "transports")
    return azurite


@pytest.fixture(params=["files", *NETWORKS])
def transport(request, folder, container):
    """Each transport, with its archive's place as its root."""
    if request.param == "files":
        return Files(Errand(parse_location(folder / "a.zarr")))
    place = parse_location(container.url("transports", "a.zarr"))
    return NETWORKS[request.param](Errand(place), ANONYMOUS, Patience())


def test_an_object_comes_whole(transport):
    for key in ("ten", "empty", "RawData/0.0"):
        assert bytes(transport.get(key, anything, watch())) == OBJECTS[f"a.zarr/{key}"]


@pytest.mark.parametrize(
    "part", [(0, 1), (2, 5), (9, 10), (0, 10), (0, None), (7, None), (-1, None), (-3, None)]
)
def test_a_part_is_what_a_slice_would_be(transport, part):
    sizes = []
    body = transport.get("ten", sizes.append, watch(), part)
    assert bytes(body) == bytes(range(10))[slice(*part)]
    assert sizes == [len(body)]


def test_a_part_that_reaches_beyond_the_end_is_cut_there(transport):
    assert bytes(transport.get("ten", anything, watch(), (8, 99))) == bytes([8, 9])
    assert bytes(transport.get("ten", anything, watch(), (-99, None))) == bytes(range(10))


def test_what_is_not_there_is_absent(transport):
    for key in ("eleven", "RawData/9.9", "no/such/folder"):
        for part in (None, (0, 4), (-4, None)):
            with pytest.raises(Absent):
                transport.get(key, anything, watch(), part)


def test_the_size_is_checked_before_anything_is_read(transport):
    sizes = []

    def refuse(size):
        sizes.append(size)
        raise ChunkCorruptError("too large")

    with pytest.raises(ChunkCorruptError, match="too large"):
        transport.get("RawData/0.0", refuse, watch())
    assert sizes == [3_000_000]
    assert bytes(transport.get("ten", anything, watch())) == bytes(range(10)), "it still works"


def test_an_empty_object_is_checked_too(transport):
    sizes = []
    transport.get("empty", sizes.append, watch())
    assert sizes == [0]


def test_children_are_folders_and_objects_of_this_place_only(transport):
    folders, files = transport.children()
    assert sorted(folders) == ["RawData", "RawDataTime"]
    assert sorted(files) == [".zgroup", "empty", "ten"]


def test_threads_do_not_write_into_each_others_memory(transport):
    keys = ["ten", "RawData/0.0", "RawDataTime/0", "RawData/0.0"] * 4
    together = threading.Barrier(4)

    def read(key):
        together.wait(10)
        body = transport.get(key, anything, watch())
        together.wait(10)
        return bytes(body) == OBJECTS[f"a.zarr/{key}"]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, keys))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_body_of_a_refused_object_is_not_waited_for(container, name):
    """A bomb's bytes never come in: here they would take five minutes."""
    started_s = time.monotonic()
    with FaultProxy(container.port) as proxy:
        proxy.inject(Bandwidth(10_000))
        place = parse_location(proxy.url("transports", "a.zarr"))
        transport = NETWORKS[name](Errand(place), ANONYMOUS, Patience())
        with pytest.raises(ZeroDivisionError):
            transport.get("RawData/0.0", lambda size: size // 0, watch())
    assert time.monotonic() - started_s < 3


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_an_event_ends_a_body_that_does_not_come(container, name):
    event = threading.Event()
    with FaultProxy(container.port) as proxy:
        proxy.inject(Bandwidth(10_000))
        place = parse_location(proxy.url("transports", "a.zarr"))
        transport = NETWORKS[name](Errand(place), ANONYMOUS, Patience())
        threading.Timer(0.5, event.set).start()
        started_s = time.monotonic()
        with cancelled_by(event), pytest.raises(InterruptedRunError):
            transport.get("RawData/0.0", anything, watch())
        assert time.monotonic() - started_s < 2


def test_in_a_folder_what_cannot_be_read_says_why(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"There is no folder .*nowhere"):
        Files(Errand(parse_location(tmp_path / "nowhere")))
    (tmp_path / "a.zip").touch()
    with pytest.raises(SourceError, match="is a file, not a folder"):
        Files(Errand(parse_location(tmp_path / "a.zip")))


# What answers and failures mean


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("status", "code", "expected", "said"),
    [
        (401, "NoAuthenticationInformation", AccessDeniedError, "not valid .*HTTP status 401"),
        (403, "AuthorizationFailure", AccessDeniedError, "denied .*403, AuthorizationFailure"),
        (409, "PublicAccessNotPermitted", AccessDeniedError, "denied .*PublicAccessNotPermitted"),
        (409, "LeaseIdMissing", SourceError, "HTTP status 409|conflict"),
        (400, "InvalidUri", SourceError, "HTTP status 400"),
        (408, "", Transient, "HTTP status 408"),
        (429, "", Transient, "HTTP status 429"),
        (500, "InternalError", Transient, "HTTP status 500"),
        (503, "ServerBusy", Transient, "HTTP status 503"),
        (504, "", Transient, "HTTP status 504"),
    ],
)
def test_a_status_has_the_same_meaning_whichever_library_reads(
    container, name, status, code, expected, said
):
    with FaultProxy(container.port) as proxy:
        body = f"<Error><Code>{code}</Code><Message>Because.</Message></Error>".encode()
        headers = {"x-ms-error-code": code, "Content-Type": "application/xml"}
        proxy.inject(Answer(status, headers, body))
        place = parse_location(proxy.url("transports", "a.zarr"))
        transport = NETWORKS[name](Errand(place), ANONYMOUS, IN_SHORT)
        with pytest.raises(expected, match=said) as caught:
            transport.get("ten", anything, watch())
        assert len(proxy.requests) == 1, "trying again is left to others"
    assert "\n" not in str(caught.value)
    assert f"{place}/ten" in str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "fault", [Reset(None), Hang(), Reset(10), Hang(10), Truncate(10)], ids=repr
)
@pytest.mark.slow
def test_a_connection_that_breaks_may_pass(container, name, fault):
    with FaultProxy(container.port) as proxy:
        proxy.inject(fault)
        place = parse_location(proxy.url("transports", "a.zarr"))
        transport = NETWORKS[name](Errand(place), ANONYMOUS, IN_SHORT)
        with pytest.raises(Transient) as caught:
            transport.get("RawData/0.0", anything, watch())
        assert len(proxy.requests) == 1
    assert caught.value.answered == (fault.after == 10)


def test_every_exception_of_obstore_has_a_meaning():
    classes = [one for one in vars(obstore.exceptions).values() if isinstance(one, type)]
    assert len(classes) > 10
    assert [one.__name__ for one in classes if one.__name__ not in MEANINGS] == []
    errand = Errand(parse_location("https://rapid.blob.core.windows.net/c"))
    reader = Objects(errand, ANONYMOUS, Patience())
    for one in (*classes, FileNotFoundError, PermissionError):
        meant = reader._failed("", one("what happened"))
        assert isinstance(meant, DasGpuError)
        assert "https://rapid.blob.core.windows.net/c" in str(meant)
        of_object = reader._failed("key", one("what happened"))
        assert isinstance(of_object, (DasGpuError, Absent, Changed))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exception_that_quotes_a_signed_url_no_longer_does_when_it_is_passed_on(name):
    """Both libraries take care by themselves, today; it is not left to that."""
    from azure.core.exceptions import ServiceRequestError

    errand = Errand(parse_location("https://rapid.blob.core.windows.net/c"))
    url = f"https://rapid.blob.core.windows.net/c?{SIGNATURE}"
    error = {"obstore": obstore.exceptions.GenericError, "azure-sdk": ServiceRequestError}[name](
        f"Max retries exceeded with url: {url}"
    )
    error.__context__ = ConnectionError(url)
    meant = (
        Objects(errand, ANONYMOUS, IN_SHORT)._failed("", error)
        if name == "obstore"
        else (explain(error, errand))
    )
    shown = f"{meant} {error} {error!r} {error.__context__}"
    assert "sig=(secret)" in shown
    assert "Y2FuYXJ5" not in shown


# Whom they ask


@dataclass
class Listener:
    """A server that is told things it must not be told, and by whom it was asked."""

    port: int
    lines: list[str] = field(default_factory=list)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def listening():
    """Note the first line of whatever is sent, and answer 400."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener = Listener(server.getsockname()[1])

        def listen():
            with suppress(OSError):
                while True:
                    client = server.accept()[0]
                    client.settimeout(2)
                    with client, suppress(OSError):
                        listener.lines.append(client.recv(1 << 16).partition(b"\r\n")[0].decode())
                        client.sendall(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=listen)
        thread.start()
        yield listener
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def listener():
    with listening() as listener:
        yield listener


@pytest.fixture
def hostile(monkeypatch, listener, tmp_path):
    """Every variable that might lead a library elsewhere leads it to the listener."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password else\n")
    variables = {
        "NETRC": str(netrc),
        # The emulator's and other people's accounts.
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURITE_BLOB_STORAGE_URL": listener.url,
        "AZURE_STORAGE_ENDPOINT": listener.url,
        "AZURE_ENDPOINT": listener.url,
        "AZURE_CONTAINER_NAME": "elsewhere",
        "AZURE_STORAGE_CONTAINER_NAME": "elsewhere",
        "AZURE_USE_FABRIC_ENDPOINT": "true",
        "AZURE_PROXY_URL": listener.url,
        # Identities.
        "AZURE_CLIENT_ID": "11111111-2222-3333-4444-555555555555",
        "AZURE_TENANT_ID": "11111111-2222-3333-4444-555555555555",
        "AZURE_CLIENT_SECRET": "hostile",
        "AZURE_AUTHORITY_HOST": listener.url,
        "AZURE_STORAGE_CLIENT_ID": "hostile",
        "AZURE_STORAGE_CLIENT_SECRET": "hostile",
        "AZURE_STORAGE_TENANT_ID": "hostile",
        "AZURE_STORAGE_AUTHORITY_HOST": listener.url,
        "AZURE_STORAGE_TOKEN": "hostile",
        "AZURE_STORAGE_BEARER_TOKEN": "hostile",
        "AZURE_USE_AZURE_CLI": "true",
        "AZURE_FEDERATED_TOKEN_FILE": str(netrc),
        # Metadata addresses.
        "IDENTITY_ENDPOINT": f"{listener.url}/identity",
        "IDENTITY_HEADER": "hostile",
        "MSI_ENDPOINT": f"{listener.url}/msi",
        "AZURE_MSI_ENDPOINT": f"{listener.url}/msi",
        "AWS_METADATA_ENDPOINT": listener.url,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{listener.url}/credentials",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(netrc),
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/hostile",
        "AWS_ENDPOINT_URL_STS": listener.url,
        "GCE_METADATA_HOST": listener.url.removeprefix("http://"),
        "GCE_METADATA_ROOT": listener.url.removeprefix("http://"),
        "GCE_METADATA_IP": listener.url.removeprefix("http://"),
    }
    for name in ("AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return listener


SECRETS = {
    "anonymous": ANONYMOUS,
    "key": Secret("key", KEY),
    "sas": Secret("sas", SIGNATURE),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", SECRETS)
def test_no_variable_changes_where_a_request_goes_or_how_it_is_signed(
    hostile, monkeypatch, name, kind
):
    for variable in ("ACCOUNT_KEY", "ACCESS_KEY", "MASTER_KEY"):
        monkeypatch.setenv(f"AZURE_STORAGE_{variable}", "aG9zdGlsZQ==")
    for variable in ("SAS_TOKEN", "SAS_KEY"):
        monkeypatch.setenv(f"AZURE_STORAGE_{variable}", "sig=aG9zdGlsZQ%3D%3D")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "hostile")
    monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true" if kind != "anonymous" else "false")
    with serve_blobs(lambda _: 404) as served:
        errand = Errand(parse_location(f"{served.url}/a.zarr"))
        with pytest.raises(Absent):
            NETWORKS[name](errand, SECRETS[kind], IN_SHORT).get("ten", anything, watch())
    assert hostile.lines == []
    assert len(served.targets) == 1
    path, _, query = served.targets[0].partition("?")
    signed = served.headers[0].get("authorization", "")
    assert path == "/account/container/a.zarr/ten"
    assert (query, signed.partition(" ")[0]) == {
        "anonymous": ("", ""),
        "key": ("", "SharedKey"),
        "sas": (SIGNATURE, ""),
    }[kind]


@pytest.fixture(scope="module")
def private(azurite):
    azurite.create_container("signed")
    with azurite.service() as service:
        service.get_container_client("signed").upload_blob("ten", b"inside", overwrite=True)
    return azurite.url("signed")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_signature_is_as_azure_understands_it_whatever_the_environment_says(
    hostile, private, name
):
    reader = NETWORKS[name](Errand(parse_location(private)), SECRETS["key"], IN_SHORT)
    assert bytes(reader.get("ten", anything, watch())) == b"inside"
    assert hostile.lines == []


@pytest.mark.parametrize("cloud", ["az", "s3", "gs"])
def test_the_listener_hears_a_library_that_is_left_to_itself(hostile, monkeypatch, cloud):
    """Else the tests around this one would show nothing."""
    from obstore.store import AzureStore, GCSStore, S3Store

    for name in set(os.environ):
        if name.startswith(("AZURE_", "AWS_")) and name != "AWS_METADATA_ENDPOINT":
            monkeypatch.delenv(name)
    how = {
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        "client_options": {"allow_http": True, "timeout": "2s"},
    }
    store = {
        "az": lambda: AzureStore("container", account_name="account", **how),
        "s3": lambda: S3Store("bucket", **how),
        "gs": lambda: GCSStore("bucket", **how),
    }[cloud]()
    with pytest.raises((obstore.exceptions.BaseError, OSError)):
        obstore.get(store, "x")
    assert len(hostile.lines) >= 1


def test_without_a_credential_azures_library_connects_to_the_store_alone(monkeypatch, hostile):
    connected = []
    connect = socket.socket.connect

    def note(self, address):
        connected.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", note)
    with serve_blobs(lambda key: key.encode()) as served:
        store = Store(parse_location(served.url), Access(transport="azure-sdk", patience=IN_SHORT))
        with suppress(SourceError):
            store.get("x")
        port = urlsplit(served.url).port
    assert len(connected) >= 2
    assert set(connected) == {("127.0.0.1", port)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["key", "sas"])
def test_a_redirect_takes_no_secret_along(name, kind, monkeypatch):
    """To another server; requests and reqwest both follow one."""
    with serve_blobs(lambda _: 404) as other, FaultProxy(1) as proxy:
        proxy.inject(Answer(307, {"Location": f"{other.url}/x"}))
        errand = Errand(parse_location(proxy.url("container")))
        with suppress(Absent, Transient, DasGpuError):
            NETWORKS[name](errand, SECRETS[kind], IN_SHORT).get("x", anything, watch())
    assert "sig=" not in "".join(other.targets)
    assert [headers.get("authorization") for headers in other.headers] == [None] * len(
        other.headers
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_server_of_this_machine_is_not_reached_through_a_proxy(listener, monkeypatch, name):
    """It would be told, in clear, what is for loopback only."""
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, listener.url)
    with serve_blobs(lambda _: 404) as served:
        errand = Errand(parse_location(served.url))
        with pytest.raises(Absent):
            NETWORKS[name](errand, SECRETS["sas"], IN_SHORT).get("x", anything, watch())
    assert listener.lines == []
    assert served.requests == ["GET x"]


# TLS


class Secure:
    """A server with TLS that notes what arrives, before and after decryption.

    ``folder`` is where its certificate goes: ``certificate.pem``, signed by itself.
    """

    def __init__(self, folder, names=("localhost", "127.0.0.1")):
        self.certificate = folder / "certificate.pem"
        self.clear: list[bytes] = []
        self.targets: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.objects: dict[str, bytes] = {}
        key = _certify(names, folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.targets.append(self.path)
                outer.headers.append({name.lower(): text for name, text in self.headers.items()})
                status, body = outer.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", '"1"')
                self.send_header("Last-Modified", "Mon, 01 Nov 2021 00:00:00 GMT")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Keep quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request, address):
                first = request.recv(5, socket.MSG_PEEK)
                outer.clear.append(first)
                with suppress(OSError), context.wrap_socket(request, server_side=True) as secure:
                    super().finish_request(secure, address)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    @property
    def port(self):
        return self.server.server_port

    def answer(self, target):
        """A bucket, path-style: objects, and ListObjectsV2 one level deep."""
        url = urlsplit(target)
        key = url.path.removeprefix("/bucket").lstrip("/")
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if "list-type" not in query:
            found = self.objects.get(key)
            return (
                (404, b"<Error><Code>NoSuchKey</Code></Error>") if found is None else (200, found)
            )
        prefix = query.get("prefix", "")
        names = [name for name in self.objects if name.startswith(prefix)]
        below = [name.removeprefix(prefix) for name in names]
        folders = sorted({name.partition("/")[0] for name in below if "/" in name})
        listed = "".join(
            f"<Contents><Key>{prefix}{name}</Key><LastModified>2021-11-01T00:00:00.000Z"
            f"</LastModified><Size>1</Size><ETag>1</ETag></Contents>"
            for name in below
            if "/" not in name
        ) + "".join(
            f"<CommonPrefixes><Prefix>{prefix}{name}/</Prefix></CommonPrefixes>" for name in folders
        )
        head = "<Name>bucket</Name><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated>"
        return 200, f"<ListBucketResult>{head}{listed}</ListBucketResult>".encode()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def _certify(names, folder):
    """Write a certificate for names and addresses; where its key is."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.now(UTC)
    alternatives = [
        x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
        for name in names
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "key.pem"


def trust(monkeypatch, server):
    """Let both libraries accept a server's own certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.certificate))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_server_whose_certificate_nobody_vouches_for_is_told_nothing(tmp_path, monkeypatch, name):
    """At once: waiting would not make it trusted. Nor do variables of other programs."""
    for variable in ("AZURE_ALLOW_INVALID_CERTIFICATES", "AZURE_ALLOW_HTTP"):
        monkeypatch.setenv(variable, "true")
    monkeypatch.setenv("SIGNATURE", SIGNATURE)
    started_s = time.monotonic()
    with Secure(tmp_path) as server:
        place = parse_location(f"https://localhost:{server.port}/account/container")
        store = Store(place, Access(Credential("sas", "SIGNATURE"), name, Patience(20)))
        with pytest.raises(SourceError, match=r"certificate is not trusted") as caught:
            store.get("x")
    assert time.monotonic() - started_s < 3
    assert "Y2FuYXJ5" not in str(caught.value)
    assert server.targets == []
    # A connection that was only looked at sends nothing; the others begin a handshake.
    assert {first[:2] for first in server.clear} == {b"", b"\x16\x03"}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_certificate_for_another_name_is_not_trusted(tmp_path, monkeypatch, name):
    with Secure(tmp_path, names=["elsewhere.test"]) as server:
        trust(monkeypatch, server)
        place = parse_location(f"https://localhost:{server.port}/account/container")
        with pytest.raises(SourceError, match="certificate is not trusted"):
            Store(place, Access(transport=name, patience=Patience(20))).get("x")
    assert server.targets == []


@pytest.mark.parametrize("name", NETWORKS)
def test_a_token_of_azure_identitys_chain_is_sent_over_tls(tmp_path, monkeypatch, name):
    """And nothing that is noted for the machine in ~/.netrc, as requests would on its own."""
    from tests.test_credentials import StandIn

    (tmp_path / "netrc").write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", StandIn)
    with Secure(tmp_path) as server:
        trust(monkeypatch, server)
        place = parse_location(f"https://localhost:{server.port}/account/container")
        store = Store(place, Access(Credential("default"), name, IN_SHORT))
        assert store.get("x") is None
    assert server.headers[0]["authorization"] == "Bearer canary.token.canary"


def test_a_bucket_of_s3_is_read_anonymously(tmp_path, monkeypatch, hostile):
    """From start to end, by a server that speaks enough of S3."""
    with Secure(tmp_path) as server:
        trust(monkeypatch, server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{server.port}")
        server.objects = dict(OBJECTS)
        store = Store(parse_location("s3://bucket/a.zarr"), Access(patience=IN_SHORT))
        assert bytes(store.get("ten")) == bytes(range(10))
        assert store.get("eleven") is None
        folders, files = store.children()
        assert (folders, sorted(files)) == (["RawData", "RawDataTime"], [".zgroup", "empty", "ten"])
    assert hostile.lines == []
    assert not any("authorization" in headers for headers in server.headers)


def test_a_bucket_of_s3_is_read_with_the_environments_key(tmp_path, monkeypatch):
    with Secure(tmp_path) as server:
        trust(monkeypatch, server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{server.port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIACANARY")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary/canary")
        server.objects = dict(OBJECTS)
        store = Store(parse_location("s3://bucket/a.zarr"), Access(patience=IN_SHORT))
        assert bytes(store.get("ten")) == bytes(range(10))
    assert "Credential=AKIACANARY/" in server.headers[0]["authorization"]


@pytest.mark.parametrize("variable", ["AWS_ALLOW_HTTP", "AWS_ALLOW_INVALID_CERTIFICATES"])
def test_a_bucket_is_not_read_in_clear_nor_from_an_untrusted_server(
    tmp_path, monkeypatch, variable
):
    scheme = "http" if variable == "AWS_ALLOW_HTTP" else "https"
    monkeypatch.setenv(variable, "true")
    with Secure(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"{scheme}://localhost:{server.port}")
        store = Store(parse_location("s3://bucket/a.zarr"), Access(patience=IN_SHORT))
        with pytest.raises(SourceError):
            store.get("ten")
    assert server.targets == []
    assert {first[:2] for first in server.clear} <= {b"\x16\x03"}


def test_a_bucket_of_google_is_asked_for_anonymously_and_nothing_else_is(monkeypatch, hostile):
    """As far as it can be shown here: through a proxy, which says no."""
    with listening() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        store = Store(parse_location("gs://bucket/a"), Access(patience=IN_SHORT))
        with pytest.raises(SourceError, match="gs://bucket/a/x"):
            store.get("x")
    assert set(proxy.lines) == {"CONNECT storage.googleapis.com:443 HTTP/1.1"}
    assert hostile.lines == []


def test_azures_own_library_reads_azure_only():
    with pytest.raises(UsageError, match=r"reads Azure Blob Storage only, not s3://bucket/a"):
        Store(parse_location("s3://bucket/a"), Access(transport="azure-sdk"))


def test_a_token_is_not_sent_by_azures_library_without_tls(monkeypatch):
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", object)
    access = Access(Credential("default"), "azure-sdk", Patience.within(2))
    with serve_blobs(lambda _: 200) as served:
        with pytest.raises(UsageError, match="over https only"):
            Store(parse_location(served.url), access)
        assert served.requests == []
