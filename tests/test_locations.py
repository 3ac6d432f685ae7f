"""Paths and URLs: which are understood, and what they say they mean."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

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


def test_az_takes_its_account_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        parse_location("az://zarr/a.zarr")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "rapid")
    assert parse_location("az://zarr/a.zarr") == PLACE
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        "AccountName=other;AccountKey=x;EndpointSuffix=core.chinacloudapi.cn",
    )
    assert str(parse_location("az://c")) == "https://other.blob.core.chinacloudapi.cn/c"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=o;BlobEndpoint=http://a.b/o")
    with pytest.raises(UsageError, match="plain http endpoint"):
        parse_location("az://c")


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
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="AZURE_STORAGE_SAS_TOKEN") as caught:
        parse_location(text)
    assert SECRET not in str(caught.value)
