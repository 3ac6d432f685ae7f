"""Recordings in HDF5 files in Azure Blob Storage, indexed and read where they are."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from azure.storage.blob import generate_container_sas

from das_gpu import extract, open_archive
from das_gpu.cli import main
from das_gpu.credentials import Credential
from das_gpu.errors import AccessDeniedError, SourceError
from das_gpu.index import index_files
from das_gpu.run import default_loaders
from das_gpu.store import Access
from tests.archives import random_walk, write_archive
from tests.azurite import ACCOUNT, KEY
from tests.hdf5 import RATE_HZ, write_series, write_terra15
from tests.outputs import lines, records
from tests.test_index import EQUAL, RECIPE, UNEQUAL, pictures

pytest_plugins = ["tests.azurite"]


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return random_walk(36, 6000, seed=5, swell=10)


@pytest.fixture(scope="module")
def expected(samples, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("plain")
    store = write_archive(folder / "a.zarr", samples, RATE_HZ, (16, 700))
    extract(store, folder / "out", RECIPE)
    return pictures(folder / "out")


@pytest.fixture
def sas(azurite, monkeypatch) -> str:
    """A signature that reads and lists a container, in the environment variable MY_SAS."""
    end = datetime.now(UTC) + timedelta(hours=1)
    text = generate_container_sas(ACCOUNT, "closed", KEY, permission="rl", expiry=end)
    monkeypatch.setenv("MY_SAS", text)
    return text


def put(azurite, folder: Path, samples: np.ndarray, lengths: list[int], container: str) -> str:
    """Upload files of these lengths; give their folder's URL."""
    write_series(folder / "files", samples, lengths)
    azurite.create_container(container, public=None if container == "closed" else "container")
    azurite.upload_folder(folder / "files", container, f"{folder.name}/day 1")
    return azurite.url(container, f"{folder.name}/day%201/")


@pytest.mark.parametrize("transport", ["obstore", "azure-sdk"])
@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["as chunks", "joined"])
@pytest.mark.slow
def test_files_of_a_private_container_are_read_with_a_signature_that_is_nowhere_kept(
    azurite, sas, samples, expected, tmp_path, transport, lengths
):
    url = put(azurite, tmp_path, samples, lengths, "closed")
    access = Access(Credential.parse("sas:MY_SAS"), transport)
    source = index_files([url], tmp_path / "archive.json", access).path
    signature = sas.partition("sig=")[2].partition("&")[0]
    assert signature not in source.read_text()
    archive = open_archive(source, access=access)
    assert default_loaders(archive, 2) > 2  # as over a network
    assert extract(source, tmp_path / "out", RECIPE, access=access).exit_code == 0
    assert pictures(tmp_path / "out") == expected
    with pytest.raises((AccessDeniedError, SourceError)):
        open_archive(source)


def test_the_command_indexes_urls_and_info_reads_the_result(azurite, samples, tmp_path, capsys):
    url = put(azurite, tmp_path, samples, EQUAL, "open")
    source = str(tmp_path / "archive.json")
    assert main(["index", f"{url}part0001.h5", f"{url}part0000.h5", "-o", source, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["files"], said["samples"], said["gaps"]) == (2, 4000, [])
    assert main(["info", source, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["files"] == [f"{url}part0000.h5", f"{url}part0001.h5"]


def test_an_index_beside_its_files_is_read_from_the_container(azurite, samples, expected, tmp_path):
    url = put(azurite, tmp_path, samples, EQUAL, "open")
    local = index_files([url], tmp_path / "archive.json").path
    text = local.read_text().replace(url, "day 1/")  # relative to the index
    with azurite.service() as service:
        service.get_blob_client("open", f"{tmp_path.name}/archive.json").upload_blob(text)
    source = azurite.url("open", f"{tmp_path.name}/archive.json")
    assert extract(source, tmp_path / "out", RECIPE).exit_code == 0
    assert pictures(tmp_path / "out") == expected


@pytest.mark.parametrize("transport", ["obstore", "azure-sdk"])
@pytest.mark.parametrize(
    ("spoil", "said"), [("delete", "not there any more"), ("change", "changed since")]
)
@pytest.mark.slow
def test_a_blob_that_is_gone_or_changed_is_missing_and_never_read(
    azurite, samples, tmp_path, transport, spoil, said
):
    url = put(azurite, tmp_path, samples, EQUAL, "open")
    access = Access(transport=transport)
    source = index_files([url], tmp_path / "archive.json", access).path
    with azurite.service() as service:
        blob = service.get_blob_client("open", f"{tmp_path.name}/day 1/part0002.h5")
        if spoil == "delete":
            blob.delete_blob()
        else:
            blob.upload_blob((tmp_path / "files" / "part0002.h5").read_bytes(), overwrite=True)
    assert extract(source, tmp_path / "out", RECIPE, access=access).exit_code == 3
    lost = [r for r in records(tmp_path / "out") if r["status"] == "missing"]
    assert lost
    assert all("part0002.h5" in r["reason"] and said in r["reason"] for r in lost)
    assert lines(tmp_path / "out" / "metadata.jsonl")  # the rest is delivered


def test_other_layouts_are_for_local_files_and_this_is_said(azurite, samples, tmp_path):
    azurite.create_container("open", public="container")
    (tmp_path / "files").mkdir()
    write_terra15(tmp_path / "files" / "a.h5", samples)
    azurite.upload_folder(tmp_path / "files", "open", tmp_path.name)
    with pytest.raises(SourceError, match=r"a\.h5 is not of the layout.*Copy the files"):
        index_files([azurite.url("open", f"{tmp_path.name}/a.h5")], tmp_path / "a.json")


def test_a_blob_that_is_not_there_is_named(azurite, tmp_path):
    azurite.create_container("open", public="container")
    with pytest.raises(SourceError, match=r"There is no file .*nothing\.h5"):
        index_files([azurite.url("open", "nothing.h5")], tmp_path / "a.json")
