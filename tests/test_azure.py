"""An archive or a run in a blob container is the same as on disk."""

from __future__ import annotations

import json

import pytest

from das_gpu import Recipe, extract, open_archive
from das_gpu.cli import main
from das_gpu.credentials import Credential
from das_gpu.errors import AccessDeniedError, SourceNotFoundError
from das_gpu.host import processors
from das_gpu.store import Access
from tests.archives import random_walk, write_archive
from tests.outputs import files, statuses
from tests.proxy import FaultProxy, Latency

RECIPE = Recipe().with_settings({"selection.channel_step": 1, "tile.seconds": 5, "tile.bands": 2})
PREFIX = "ooi_South_Tx.zarr/ooi_South_Tx.zarr"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    samples = random_walk(40, 4000, seed=2)
    return write_archive(tmp_path_factory.mktemp("store") / "a.zarr", samples, 200.0, (16, 1000))


@pytest.fixture(scope="module")
def container(azurite, store):
    """A public container with the archive at a prefix inside a prefix, as the published one."""
    azurite.create_container("zarr", public="container")
    azurite.upload_folder(store, "zarr", PREFIX)
    return azurite


def test_a_public_container_gives_the_same_files_as_the_disk(container, store, tmp_path):
    extract(store, tmp_path / "disk", RECIPE)
    summary = extract(container.url("zarr", PREFIX), tmp_path / "blob", RECIPE)
    assert summary.images == 8
    assert summary.chunks == 3 * 4
    assert files(tmp_path / "blob") == files(tmp_path / "disk")


def test_a_blob_that_is_not_there_is_missing_and_one_cut_short_is_corrupt(azurite, store, tmp_path):
    azurite.create_container("broken", public="container")
    azurite.upload_folder(store, "broken", "a.zarr")
    with azurite.service() as service:
        blobs = service.get_container_client("broken")
        blobs.delete_blob("a.zarr/RawData/0.0")
        whole = blobs.download_blob("a.zarr/RawData/2.3").readall()
        blobs.upload_blob("a.zarr/RawData/2.3", whole[: len(whole) // 2], overwrite=True)
    summary = extract(azurite.url("broken", "a.zarr"), tmp_path / "out", RECIPE)
    assert summary.exit_code == 3
    # Bands are channels 0:20 and 20:40, chunk rows 0:16, 16:32 and 32:40; tiles are 1000 samples.
    assert statuses(tmp_path / "out") == [
        "missing", "edge",
        "edge", "ok",
        "ok", "edge",
        "edge", "corrupt",
    ]  # fmt: skip


def test_a_private_container_is_denied_and_nothing_is_written(azurite, store, tmp_path):
    azurite.create_container("closed")
    azurite.upload_folder(store, "closed", "a.zarr")
    with pytest.raises((AccessDeniedError, SourceNotFoundError)):
        extract(azurite.url("closed", "a.zarr"), tmp_path / "out", RECIPE)
    assert not (tmp_path / "out").exists()


def test_a_wrong_prefix_is_not_found(container):
    with pytest.raises(SourceNotFoundError, match="elsewhere"):
        open_archive(container.url("zarr", "elsewhere"))


# --- writing ----------------------------------------------------------------------------------


@pytest.fixture
def owner(azurite, monkeypatch):
    """The owner's credential, as a user would name it."""
    monkeypatch.setenv("MY_STORAGE", azurite.connection_string)
    return "connection-string:MY_STORAGE"


def download(azurite, container, prefix, folder):
    """Copy a run from its container into a folder."""
    with azurite.service() as service:
        blobs = service.get_container_client(container)
        for key in azurite.keys(container, prefix):
            path = folder / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blobs.download_blob(key).readall())
    return folder


SELECTION = ["--channels", "::1", "--tile-seconds", "5", "--bands", "2"]


@pytest.mark.slow
def test_a_run_into_a_container_has_the_keys_and_bytes_of_a_run_on_disk(
    azurite, container, store, owner, tmp_path, capsys
):
    """Read from one container with the SDK, written to another one by its short address."""
    azurite.create_container("runs")
    source = container.url("zarr", PREFIX)
    assert main(["extract", str(store), str(tmp_path / "disk"), *SELECTION]) == 0
    out = ["az://runs/night", "--out-credential", owner, "--transport", "azure-sdk"]
    assert main(["extract", source, *out, *SELECTION]) == 0
    assert "Images: az://runs/night/images" in capsys.readouterr().err
    assert files(download(azurite, "runs", "night", tmp_path / "blob")) == files(tmp_path / "disk")
    with azurite.service() as service:
        found = service.get_container_client("runs").list_blobs("night/")
        types = {one.name.rpartition(".")[2]: one.content_settings.content_type for one in found}
    assert types == {
        "png": "image/png",
        "json": "application/json",
        "jsonl": "application/x-ndjson",
        "html": "text/html; charset=utf-8",
    }


@pytest.mark.slow
def test_a_run_in_a_container_is_continued_where_it_was_left(
    azurite, store, owner, tmp_path, capsys
):
    azurite.create_container("nights")
    url, named = azurite.url("nights", "one"), ["--out-credential", owner]
    short = ["--segment-minutes", "0.1", *SELECTION]
    assert main(["extract", str(store), url, *named, *short]) == 0
    whole = files(download(azurite, "nights", "one", tmp_path / "whole"))
    with azurite.service() as service:
        blobs = service.get_container_client("nights")
        blobs.delete_blob("one/segments/00001.jsonl")
        blobs.delete_blob("one/metadata.jsonl")
    capsys.readouterr()
    assert main(["extract", str(store), url, *named, *SELECTION, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 2
    assert files(download(azurite, "nights", "one", tmp_path / "again")) == whole
    assert main(["extract", str(store), url, *named, *SELECTION]) == 0
    assert "Nothing to do" in capsys.readouterr().err


@pytest.mark.slow
def test_images_go_up_eight_at_a_time(azurite, store, owner, tmp_path):
    azurite.create_container("wide")
    with FaultProxy(azurite.port) as proxy:
        proxy.inject(Latency(0.1), method="PUT")
        recipe = RECIPE.with_settings({"tile.bands": 20})
        access = Access(Credential.parse(owner))
        extract(store, proxy.url("wide", "a"), recipe, out_access=access)
        assert proxy.peak_of(r"\.png$") == 8
        assert proxy.count(r"\.png$", "PUT") == 80


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--out-credential", "anonymous"], 5, "give --out-credential"),
        (["--out-credential", "key:WRONG_KEY"], 5, "with the credential 'key:WRONG_KEY'"),
        (["--out-credential", "key:NO_SUCH"], 2, "NO_SUCH, named as the place of a credential"),
    ],
)
def test_where_a_run_may_not_write_it_does_not_begin(
    azurite, store, monkeypatch, capsys, arguments, code, said
):
    azurite.create_container("off-limits")
    monkeypatch.setenv("WRONG_KEY", "d3Jvbmcta2V5LXdyb25nLWtleQ==")
    assert main(["extract", str(store), azurite.url("off-limits", "a"), *arguments]) == code
    assert said in capsys.readouterr().err
    assert azurite.keys("off-limits") == []


def test_info_says_who_may_read_the_container(container, capsys):
    assert main(["info", container.url("zarr", PREFIX), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["container"]["access"] == "public, may be listed"


def test_one_secret_for_two_accounts_is_refused(store, monkeypatch, capsys):
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2024&sig=c2VjcmV0")
    places = [f"https://{name}.blob.core.windows.net/a/b" for name in ("one", "two")]
    assert main(["extract", *places]) == 2
    assert "AZURE_STORAGE_ACCOUNT_NAME" in capsys.readouterr().err


@pytest.mark.slow
def test_plan_says_how_many_chunks_are_asked_for_at_a_time(container, store, capsys):
    for source, options, loaders in [
        (container.url("zarr", PREFIX), [], 12),
        (container.url("zarr", PREFIX), ["--loaders", "3"], 3),
        (str(store), [], processors()),
    ]:
        assert main(["plan", source, *SELECTION, *options]) == 0
        assert f"{loaders} chunks asked for at a time" in capsys.readouterr().out


def test_an_account_can_be_given_for_a_short_address(store, monkeypatch, capsys):
    """Nothing is sent: nobody writes to Azure without a credential."""
    for name in ("CONNECTION_STRING", "ACCOUNT_NAME", "ACCOUNT_KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    assert main(["extract", str(store), "az://runs/night", "--account", "mine"]) == 5
    assert "https://mine.blob.core.windows.net/runs/night" in capsys.readouterr().err
