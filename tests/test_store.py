"""The store: what passes is waited out, what does not becomes an error that helps."""

from __future__ import annotations

import pickle
import socket
import time
import traceback
from datetime import UTC, datetime, timedelta

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from das_gpu import patience as patience_module
from das_gpu.answers import Errand
from das_gpu.archive import open_archive
from das_gpu.credentials import Credential
from das_gpu.errors import (
    AccessDeniedError,
    DasGpuError,
    DestinationError,
    SourceError,
    SourceNotFoundError,
    UsageError,
)
from das_gpu.locations import Location, parse_location
from das_gpu.patience import Patience
from das_gpu.store import Access, Store, secret_for
from tests.archives import random_walk, write_archive
from tests.azurite import ACCOUNT, KEY, serve_blobs
from tests.faults import Answer, Truncate
from tests.proxy import FaultProxy

NETWORKS = ["obstore", "azure-sdk"]
IN_SHORT = Patience(total_s=0.5, connect_s=2, stall_s=1)
OTHER_KEY = "d3Jvbmd3cm9uZw=="
PLACE = Location("azure", "zarr", "a.zarr", "rapid", "https://rapid.blob.core.windows.net")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch):
    for name in ("CONNECTION_STRING", "ACCOUNT_NAME", "ACCOUNT_KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)


@pytest.fixture
def hurried(monkeypatch):
    """Waits of a hundredth of their length."""
    for name in ("_FIRST_WAIT_S", "_LONGEST_WAIT_S", "_THROTTLED_WAIT_S"):
        monkeypatch.setattr(patience_module, name, getattr(patience_module, name) / 100)


@pytest.fixture(scope="module")
def public(azurite):
    """A public container with one object."""
    azurite.create_container("stores", public="container")
    with azurite.service() as service:
        blobs = service.get_container_client("stores")
        blobs.upload_blob("a.zarr/x", bytes(range(256)) * 1000, overwrite=True)
    return azurite


@pytest.fixture
def proxy(public):
    with FaultProxy(public.port) as proxy:
        yield proxy


def store_at(proxy, name, patience=IN_SHORT):
    return Store(
        parse_location(proxy.url("stores", "a.zarr")), Access(Credential(), name, patience)
    )


# Trying again


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_what_passes_is_not_noticed(proxy, hurried, name):
    store = store_at(proxy, name, Patience())
    for status in (500, 503, 429):
        proxy.inject(Answer(status), times=1)
    proxy.inject(Truncate(), times=1)
    assert bytes(store.get("x")) == bytes(range(256)) * 1000
    assert len(proxy.requests) == 5


@pytest.mark.parametrize("name", NETWORKS)
def test_listings_are_tried_again_too(proxy, hurried, name):
    store = store_at(proxy, name)
    proxy.inject(Answer(503), times=1)
    assert store.children() == ([], ["x"])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_a_server_is_left_alone_for_as_long_as_it_asks(proxy, hurried, name):
    """obstore does not show such a header: the next attempt is the other library's."""
    store = store_at(proxy, name, Patience())
    proxy.inject(Answer(429, {"Retry-After": "1"}), times=2)
    assert store.get("x") is not None
    first, second, third = (request.at_s for request in proxy.requests)
    assert third - second > 1
    assert name == "obstore" or second - first > 1


@pytest.mark.parametrize("name", NETWORKS)
def test_a_store_that_never_answered_has_failed(proxy, name):
    proxy.inject(Answer(503))
    store = store_at(proxy, name, Patience.within(0.1))
    with pytest.raises(SourceError, match=r"HTTP status 503.*Try again.*Tried once"):
        store.get("x")
    assert not store.is_alive(0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_body_that_never_comes_whole_is_asked_for_four_times(proxy, hurried, name):
    proxy.inject(Truncate())
    with pytest.raises(SourceError, match=r"not whole .*Tried 4 times"):
        store_at(proxy, name, Patience()).get("x")
    assert len(proxy.requests) == 4


@pytest.mark.parametrize("name", NETWORKS)
def test_a_store_that_gives_what_it_gave_before_is_alive(proxy, name):
    """It is asked again for that, and only when nobody else has had anything meanwhile."""
    store = store_at(proxy, name, Patience.within(1))
    began_s = time.monotonic()
    assert not store.is_alive(began_s)
    store.get("x")
    asked = len(proxy.requests)
    assert store.is_alive(began_s)
    assert len(proxy.requests) == asked
    assert store.is_alive(time.monotonic())
    assert len(proxy.requests) == asked + 1
    proxy.inject(Answer(500))
    assert not store.is_alive(time.monotonic())


@pytest.mark.parametrize("name", NETWORKS)
def test_what_would_not_pass_is_not_tried_again(proxy, name):
    started_s = time.monotonic()
    store = store_at(proxy, name, Patience())
    proxy.inject(Answer(403))
    with pytest.raises(AccessDeniedError):
        store.get("x")
    proxy.clear()
    assert store.get("y") is None
    assert len(proxy.requests) == 2
    assert time.monotonic() - started_s < 2


@pytest.mark.parametrize("name", NETWORKS)
def test_a_server_that_is_not_there_is_not_waited_for(name):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    location = parse_location(f"http://127.0.0.1:{port}/account/container")
    started_s = time.monotonic()
    with pytest.raises(SourceNotFoundError, match=rf"No connection to 127.0.0.1, port {port}\b"):
        Store(location, Access(transport=name))
    assert time.monotonic() - started_s < 2


# Pickles


@pytest.mark.parametrize("name", NETWORKS)
def test_a_store_goes_to_another_process_without_its_secret(public, monkeypatch, name):
    monkeypatch.setenv("MY_KEY", KEY)
    access = Access(Credential("key", "MY_KEY"), name, IN_SHORT)
    store = Store(parse_location(public.url("stores", "a.zarr")), access)
    assert store.get("x") is not None
    data = pickle.dumps(store)
    assert KEY.encode() not in data
    again = pickle.loads(data)  # noqa: S301 - our own bytes
    assert again.access == access
    assert again.get("x") is not None
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(UsageError, match="MY_KEY"):
        pickle.loads(data)  # noqa: S301 - our own bytes


# Messages


@pytest.mark.parametrize("writing", [False, True])
@pytest.mark.parametrize(
    ("location", "credential", "advice"),
    [
        (PLACE, "", "It was tried anonymously; give {option}, or set AZURE_STORAGE_CONNECTION_ST"),
        (PLACE, "sas:MY_TOKEN", "Check the credentials. It was tried with the credential 'sas:MY_"),
        (Location("s3", "bucket", ""), "", "Check the credentials."),
    ],
)
def test_a_refusal_says_with_which_credential_and_what_to_do(location, credential, advice, writing):
    error = Errand(location, credential, writing).answered("0.0", 403, "Code")
    assert type(error) is AccessDeniedError
    option = "--out-credential" if writing else "--credential"
    assert advice.format(option=option) in str(error)
    assert f"{location}/0.0: access is denied (HTTP status 403, Code)" in str(error)


@pytest.mark.parametrize("status", [404, 409, 500])
def test_what_goes_wrong_with_the_output_is_the_destinations(status):
    reading = Errand(PLACE).answered("", status)
    writing = Errand(PLACE, writing=True).answered("", status)
    assert isinstance(reading, SourceError)
    assert type(writing) is DestinationError
    assert str(writing).startswith("Writing to https://rapid.blob.core.windows.net/zarr/a.zarr: ")


# Credentials, on a private container


@pytest.fixture(scope="module")
def private(azurite, tmp_path_factory):
    """A private container with a small archive in it."""
    samples = random_walk(4, 800, seed=3)
    folder = write_archive(tmp_path_factory.mktemp("private") / "a.zarr", samples, 200.0, (4, 400))
    azurite.create_container("locked")
    azurite.create_container("another")
    azurite.upload_folder(folder, "locked", "a.zarr")
    return azurite


def signature(container="locked", *, rights="rl", hours=1, key=KEY):
    return generate_container_sas(
        ACCOUNT,
        container,
        account_key=key,
        permission=ContainerSasPermissions.from_string(rights),
        expiry=datetime.now(UTC) + timedelta(hours=hours),
    )


@pytest.fixture(params=["variable", "file"])
def keep(request, tmp_path, monkeypatch):
    """Puts a secret where a user may put it; what to write on the command line."""

    def put(kind, secret):
        if request.param == "variable":
            monkeypatch.setenv("MY_SECRET", secret)
            return Credential.parse(f"{kind}:MY_SECRET")
        (tmp_path / "secret").write_text(secret + "\n")
        return Credential.parse(f"{kind}:@{tmp_path}/secret")

    return put


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["key", "sas", "sas without list", "connection-string", "auto"])
def test_a_private_container_is_read_with_the_right_credential(
    private, keep, monkeypatch, kind, name
):
    secret = {
        "key": KEY,
        "sas": f"?{signature()}",
        "sas without list": signature(rights="r"),
        "connection-string": private.connection_string,
    }
    if kind == "auto":
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", private.connection_string)
        credential = Credential()
    else:
        credential = keep(kind.partition(" ")[0], secret[kind])
    access = Access(credential, name)
    archive = open_archive(private.url("locked", "a.zarr"), access=access)
    assert archive.data[:, 400:].shape == (4, 400)
    assert archive.acquisition.sampling_rate_hz == 200


@pytest.mark.parametrize("name", NETWORKS)
def test_a_short_address_takes_account_and_server_from_the_connection_string(private, keep, name):
    credential = keep("connection-string", private.connection_string)
    archive = open_archive("az://locked/a.zarr", access=Access(credential, name))
    assert str(archive.location) == private.url("locked", "a.zarr")


WRONG = {
    "anonymous": ("anonymous", "", "anonymously; give --credential"),
    "another key": ("key", OTHER_KEY, "denied .*'key:{where}'"),
    "expired": ("sas", {"hours": -1}, "denied .*'sas:{where}'"),
    "signed by another key": ("sas", {"key": OTHER_KEY}, "denied .*'sas:{where}'"),
    "of another container": ("sas", {"container": "another"}, "denied .*'sas:{where}'"),
    "may write only": ("sas", {"rights": "w"}, "denied .*'sas:{where}'"),
    "another key in a connection string": (
        "connection-string",
        f"AccountName={ACCOUNT};AccountKey={OTHER_KEY}",
        "denied .*'connection-string:{where}'",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("how", WRONG)
def test_a_private_container_is_not_read_with_a_wrong_one_and_the_user_is_told_which(
    private, keep, how, name
):
    kind, secret, said = WRONG[how]
    if isinstance(secret, dict):
        secret = signature(**secret)
    credential = keep(kind, secret) if secret else Credential(kind)
    started_s = time.monotonic()
    with pytest.raises(DasGpuError, match=said.format(where=credential.where)) as caught:
        open_archive(private.url("locked", "a.zarr"), access=Access(credential, name))
    assert time.monotonic() - started_s < 3
    refused = isinstance(caught.value, AccessDeniedError)
    # Azure hides from anybody else whether there is such a container.
    assert refused or (how == "anonymous" and isinstance(caught.value, SourceNotFoundError))
    assert private.url("locked", "a.zarr") in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    for hidden in (OTHER_KEY, secret.rpartition("sig=")[2]):
        assert not hidden or hidden not in shown


@pytest.mark.parametrize("name", NETWORKS)
def test_a_key_of_another_account_is_not_sent(monkeypatch, name):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "another")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    with serve_blobs(lambda _: 404) as served:
        access = Access(Credential(), name, IN_SHORT)
        Store(parse_location(served.url), access).get("x")
        assert "authorization" not in served.headers[-1]
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        Store(parse_location(served.url), access).get("x")
        assert served.headers[-1]["authorization"].startswith("SharedKey account:")


@pytest.mark.parametrize(
    ("endpoint", "sent"),
    [
        ("https://rapid.blob.core.windows.net", True),
        ("https://rapid.z12.blob.storage.azure.net", True),
        ("http://127.0.0.1:10000/rapid", True),
        ("https://rapid.blob.example.com", False),
        ("https://blobs.example.com:8443/rapid", False),
        ("https://rapid.blob.core.windows.net.example.com", False),
    ],
)
def test_what_the_environment_holds_goes_to_azure_only(monkeypatch, endpoint, sent):
    """An account's name in somebody else's address does not get the account's key."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "rapid")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    location = parse_location(f"{endpoint}/zarr/a.zarr")
    assert (secret_for(location, Credential()).kind == "key") == sent
    monkeypatch.setenv("MINE", KEY)
    assert secret_for(location, Credential.parse("key:MINE")).kind == "key", "when asked to"
    named = f"AccountName=rapid;AccountKey={KEY};BlobEndpoint={location.endpoint}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", named)
    assert secret_for(location, Credential()).kind == "key", "to the server it is for"
