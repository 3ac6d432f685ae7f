"""Paths and URLs: which are understood, and what they say they mean."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from das_gpu.credentials import Credential
from das_gpu.errors import UsageError
from das_gpu.locations import Location, parse_location

SECRET = "c2VjcmV0c2VjcmV0"  # noqa: S105  # opens nothing
PLACE = Location("azure", "zarr", "a.zarr", "rapid", "https://rapid.blob.core.windows.net")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file:///data/a%20b.zarr", Location("file", "", "/data/a b.zarr")),
        ("https://rapid.blob.core.windows.net/zarr/a.zarr/", PLACE),
        (
            "https://rapid.blob.core.windows.net/zarr",
            Location("azure", "zarr", "", "rapid", "https://rapid.blob.core.windows.net"),
        ),
        (
            "http://127.0.0.1:10000/devstoreaccount1/zarr/ooi.zarr/ooi.zarr",
            Location(
                "azure",
                "zarr",
                "ooi.zarr/ooi.zarr",
                "devstoreaccount1",
                "http://127.0.0.1:10000/devstoreaccount1",
            ),
        ),
        (
            "https://emulator.test:10000/acct/c",
            Location("azure", "c", "", "acct", "https://emulator.test:10000/acct"),
        ),
        ("s3://bucket/a/b.zarr", Location("s3", "bucket", "a/b.zarr")),
        ("gs://bucket", Location("gs", "bucket", "")),
    ],
)
def test_known_forms(text: str, expected: Location) -> None:
    location = parse_location(text)
    assert location == expected
    assert pickle.loads(pickle.dumps(location)) == location  # noqa: S301  # our own bytes


def test_a_path_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("a.zarr", tmp_path / "a.zarr", f"file://{tmp_path}/a.zarr"):
        location = parse_location(text)
        assert location.is_local
        assert location.path == tmp_path / "a.zarr"
        assert str(location) == str(tmp_path / "a.zarr")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_location("~/x").path == tmp_path / "x"


@pytest.mark.parametrize(
    ("text", "account", "endpoint"),
    [
        # Accounts with a DNS zone, other clouds.
        ("https://rapid.z13.blob.storage.azure.net/c", "rapid", None),
        ("https://rapid.blob.core.usgovcloudapi.net/c", "rapid", None),
        ("https://RAPID.blob.core.windows.net/c", "rapid", "https://rapid.blob.core.windows.net"),
        (
            "https://rapid.blob.core.windows.net:443/c",
            "rapid",
            "https://rapid.blob.core.windows.net",
        ),
        # Emulators.
        ("http://localhost:10000/acct/c", "acct", "http://localhost:10000/acct"),
        ("http://127.9.9.9:10000/acct/c", "acct", "http://127.9.9.9:10000/acct"),
        ("http://[::1]:10000/acct/c", "acct", "http://[::1]:10000/acct"),
    ],
)
def test_hosts_of_azure_and_of_emulators(text: str, account: str, endpoint: str | None) -> None:
    endpoint = endpoint or text.removesuffix("/c")
    assert parse_location(text) == Location("azure", "c", "", account, endpoint)


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_credentials")
def test_az_takes_its_account_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--account NAME.*AZURE_STORAGE_ACCOUNT_NAME"):
        parse_location("az://zarr/a.zarr")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "rapid")
    assert parse_location("az://zarr/a.zarr") == PLACE
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        "AccountName=other;AccountKey=x;EndpointSuffix=core.chinacloudapi.cn",
    )
    assert str(parse_location("az://c")) == "https://other.blob.core.chinacloudapi.cn/c"


@pytest.mark.usefixtures("no_credentials")
def test_az_takes_its_account_from_what_is_given_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINE", "AccountName=mine;BlobEndpoint=http://127.0.0.1:10000/mine/")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=other;AccountKey=x")
    credential = Credential("connection-string", "MINE")
    mine = Location("azure", "c", "", "mine", "http://127.0.0.1:10000/mine")
    assert parse_location("az://c", credential=credential) == mine
    assert parse_location("az://c", account="mine", credential=credential) == mine
    # The address in the string is that of its own account.
    rapid = parse_location("az://zarr/a.zarr", account="rapid", credential=credential)
    assert rapid == parse_location("az://zarr/a.zarr", account="rapid") == PLACE
    assert parse_location("az://c", credential=Credential("anonymous"), account="x").account == "x"


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize(
    "endpoint",
    [
        "http://rapid.blob.core.windows.net",
        "http://10.0.0.1:10000/rapid",
        "ftp://127.0.0.1/rapid",
        f"https://rapid.blob.core.windows.net/?sv=2020&sig={SECRET}",
        f"https://user:{SECRET}@rapid.blob.core.windows.net",
        f"http://user:{SECRET}@rapid.blob.core.windows.net",
    ],
)
def test_a_connection_strings_address_is_held_to_the_same_rules(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("MINE", f"AccountName=rapid;AccountKey={SECRET};BlobEndpoint={endpoint}")
    with pytest.raises(UsageError, match=r"only https|BlobEndpoint") as caught:
        parse_location("az://c", credential=Credential("connection-string", "MINE"))
    assert SECRET not in str(caught.value)


def test_children_and_urls_of_places() -> None:
    assert str(PLACE) == "https://rapid.blob.core.windows.net/zarr/a.zarr"
    assert str(PLACE.child("b")) == "https://rapid.blob.core.windows.net/zarr/a.zarr/b"
    assert PLACE.child("b").prefix == "a.zarr/b"
    assert parse_location("s3://bucket").child("b") == Location("s3", "bucket", "b")
    with pytest.raises(UsageError, match="not a local folder"):
        _ = PLACE.path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ftp://host/x", "Known forms"),
        ("https://example.com/zarr/a.zarr", "Known forms"),
        ("https://rapid.blob.core.windows.net/", "names no container"),
        ("http://rapid.blob.core.windows.net/zarr", "plain http to another machine"),
        ("http://10.0.0.1:10000/a/c", "plain http to another machine"),
        ("https://rapid.blob.core.windows.net/zarr/../x", r"'\.\.' in its path"),
        ("http://localhost.evil.test:10000/a/c", "plain http to another machine"),
        ("http://127.0.0.1.evil.test:10000/a/c", "plain http to another machine"),
        ("http://169.254.169.254/metadata/c", "plain http to another machine"),
        ("http://0.0.0.0:10000/a/c", "plain http to another machine"),
        ("http://127.0.0.1/a/c", "Known forms"),
        ("http://127.0.0.1:10000/a", "names no container"),
        ("https://rapid.blob.core.windows.net/zarr/%2e%2e/x", r"'\.\.' in its path"),
        ("https://host:99999/a/c", "cannot be understood"),
        ("s3:///x", "Known forms"),
        ("", "No place was given"),
    ],
)
def test_other_forms_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_location(text)


@pytest.mark.parametrize(
    "text",
    [
        f"https://rapid.blob.core.windows.net/zarr/a?sv=2020&sig={SECRET}",
        f"https://user:{SECRET}@rapid.blob.core.windows.net/zarr",
        f"s3://key:{SECRET}@bucket/x",
        f"https://rapid.blob.core.windows.net/zarr/a#{SECRET}",
        f"http://rapid.blob.core.windows.net/zarr/a?sig={SECRET}",
        f"az://zarr/a?sig={SECRET}",
        f"file:///data/a?sig={SECRET}",
        f"ftp://user:{SECRET}@host/a",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="--credential sas:NAME or sas:@FILE") as caught:
        parse_location(text)
    assert SECRET not in str(caught.value)
