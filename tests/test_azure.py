"""An archive in a blob container gives the same files as the same archive on disk."""

from __future__ import annotations

import pytest

from das_gpu import Recipe, extract, open_archive
from das_gpu.errors import AccessDeniedError, SourceNotFoundError
from tests.archives import random_walk, write_archive
from tests.outputs import files, statuses

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
