"""Stores: with which credentials they are opened, what their refusals and failures mean."""

from __future__ import annotations

import pickle
from pathlib import Path

import obstore
import pytest

from das_gpu.errors import (
    AccessDeniedError,
    DasGpuError,
    SourceError,
    SourceNotFoundError,
)
from das_gpu.locations import parse_location
from das_gpu.store import _MEANING, azure_credential, open_store, translate
from tests.azurite import KEY, Azurite, serve_blobs

SECRET = "c2VjcmV0c2VjcmV0"  # noqa: S105  # opens nothing
PLACE = parse_location("https://rapid.blob.core.windows.net/zarr/a.zarr")
VARIABLES = (
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_SAS_TOKEN",
)


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_credentials_go_only_to_the_account_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert azure_credential(PLACE) == {}
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"?sig={SECRET}")
    assert azure_credential(PLACE) == {"sas_token": f"sig={SECRET}"}
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", SECRET)
    assert azure_credential(PLACE) == {"account_key": SECRET}
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "mine")
    assert azure_credential(PLACE) == {}, "another account's key would break a public container"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=rapid;AccountKey=ab==")
    assert azure_credential(PLACE) == {"account_key": "ab=="}
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "SharedAccessSignature=sig=1&se=2")
    assert azure_credential(PLACE) == {"sas_token": "sig=1&se=2"}


def test_anonymous_reading_sends_no_key_even_when_one_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "another")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    with serve_blobs(lambda key: key.encode()) as served:
        store = open_store(parse_location(served.url + "/outer/inner"))
        assert bytes(obstore.get(store, "x").bytes()) == b"outer/inner/x"
        assert served.headers[-1].get("authorization") is None
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        obstore.get(open_store(parse_location(served.url)), "x")
        assert "SharedKey account:" in served.headers[-1]["authorization"]


def test_places_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"There is no folder .*nowhere"):
        open_store(parse_location(tmp_path / "nowhere"))
    file = tmp_path / "a.zip"
    file.touch()
    with pytest.raises(SourceError, match="is a file, not a folder"):
        open_store(parse_location(file))
    with pytest.raises(SourceNotFoundError, match=r"No connection to 127.0.0.1, port 1\b"):
        open_store(parse_location("http://127.0.0.1:1/account/container"))


def test_cloud_stores_open_without_asking_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for text in ("s3://bucket/a", "gs://bucket/a"):
        assert open_store(parse_location(text)).prefix == "a"


def test_every_exception_of_obstore_has_a_meaning() -> None:
    classes = [one for one in vars(obstore.exceptions).values() if isinstance(one, type)]
    assert len(classes) > 10
    unmapped = [one.__name__ for one in classes if one.__name__ not in _MEANING]
    assert unmapped == []
    for one in (*classes, FileNotFoundError, PermissionError):
        assert isinstance(translate(one("what happened"), PLACE), DasGpuError)


@pytest.mark.parametrize(
    ("status", "expected", "said"),
    [
        (401, AccessDeniedError, "anonymously; set AZURE_STORAGE_CONNECTION_STRING"),
        (403, AccessDeniedError, "HTTP status 403, Code403"),
        (404, SourceNotFoundError, "nothing is stored there"),
        (409, SourceError, "conflict"),
        (400, SourceError, "HTTP status 400"),
    ],
)
def test_answers_of_a_server_are_translated(
    status: int, expected: type[DasGpuError], said: str
) -> None:
    with serve_blobs(lambda _: status) as served:
        location = parse_location(served.url + "/a.zarr")
        with pytest.raises(Exception, match="status code") as caught:
            obstore.get(open_store(location), "0.0")
        error = translate(caught.value, location, "0.0")
        assert type(error) is expected
        assert said in str(error)
        assert f"{served.url}/a.zarr/0.0" in str(error)
        assert "\n" not in str(error)


def test_a_refused_listing_is_a_refusal() -> None:
    with serve_blobs(lambda _: 403) as served:
        location = parse_location(served.url)
        with pytest.raises(obstore.exceptions.BaseError) as caught:
            obstore.list_with_delimiter(open_store(location))
        assert isinstance(translate(caught.value, location), AccessDeniedError)


def test_public_access_switched_off_is_a_refusal() -> None:
    error = obstore.exceptions.AlreadyExistsError(
        "status code: 409 Conflict: <Code>PublicAccessNotPermitted</Code>"
    )
    assert isinstance(translate(error, PLACE), AccessDeniedError)


def test_a_signature_never_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"sv=2020&sig={SECRET}")
    with serve_blobs(lambda _: 403) as served:
        location = parse_location(served.url)
        store = open_store(location)
        with pytest.raises(obstore.exceptions.BaseError) as caught:
            obstore.get(store, "x")
        assert SECRET in served.targets[-1], "the signature was used"
        shown = f"{caught.value!r} {translate(caught.value, location)} {store!r} {location!r}"
        assert SECRET not in shown
        assert SECRET.encode() not in pickle.dumps(location)


def test_a_passing_failure_of_the_server_is_survived() -> None:
    answers = iter([503])
    with serve_blobs(lambda _: next(answers, b"fine")) as served:
        store = open_store(parse_location(served.url))
        assert bytes(obstore.get(store, "x").bytes()) == b"fine"
        assert len(served.requests) == 2


def test_private_containers(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    azurite.create_container("private")
    location = parse_location(azurite.url("private", "folder"))
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string)
    obstore.put(open_store(location), "x", b"inside")
    assert azurite.keys("private") == ["folder/x"]
    assert bytes(obstore.get(open_store(parse_location("az://private/folder")), "x").bytes()) == (
        b"inside"
    )
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    assert bytes(obstore.get(open_store(location), "x").bytes()) == b"inside"
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    with pytest.raises((FileNotFoundError, obstore.exceptions.BaseError)) as caught:
        obstore.get(open_store(location), "x")
    error = translate(caught.value, location)
    assert isinstance(error, (AccessDeniedError, SourceNotFoundError))
    assert "anonymously" in str(error)
