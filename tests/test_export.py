"""A run's images as other tools want them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from das_gpu import Recipe, cli, extract
from das_gpu.credentials import Credential
from das_gpu.errors import DestinationError, UsageError
from das_gpu.export import export, webdataset
from das_gpu.sink import LocalSink, open_sink
from das_gpu.store import Access
from tests.archives import START_NS, random_walk, write_archive
from tests.outputs import lines

HOUR_NS = 3_600 * 10**9
NEAR_THE_HOUR_NS = START_NS // HOUR_NS * HOUR_NS + HOUR_NS - 45 * 10**9
"""45 s before an hour begins, in which three tiles of 15 s fit."""


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "recording.zarr"
    times_us = NEAR_THE_HOUR_NS // 1000 + np.arange(15_000) * 5_000
    samples = random_walk(20, 15_000, seed=1)
    return write_archive(path, samples, 200.0, (20, 3000), times_us=times_us)


@pytest.fixture(scope="module")
def run(recording, tmp_path_factory):
    """Ten tiles, six of them in the first hour."""
    out = tmp_path_factory.mktemp("run") / "images"
    extract(recording, out, recipe())
    return out


def recipe(**settings):
    return Recipe.load(settings={"tile.bands": 2, "selection.channel_step": 1, **settings})


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


class TestWebDataset:
    def test_shards_hold_every_image_with_its_record(self, run, tmp_path):
        made = export(run, tmp_path / "shards", ["webdataset"])
        assert made.images == 10
        found = {}
        for name in made.files:
            found |= members((tmp_path / "shards" / name).read_bytes())
        expected = lines(run / "metadata.jsonl")
        assert len(found) == 2 * len(expected)
        for record in expected:
            key = Path(record["file_name"]).stem
            assert found[f"{key}.png"] == (run / record["file_name"]).read_bytes()
            assert json.loads(found[f"{key}.json"]) | {"reason": record["reason"]} == record

    def test_no_shard_has_tiles_of_two_hours(self, run, tmp_path):
        made = export(run, tmp_path / "shards", ["webdataset"])
        hours = Counter()
        for name in made.files:
            found = members((tmp_path / "shards" / name).read_bytes())
            keys = {json.loads(data)["split_key"] for key, data in found.items() if "json" in key}
            assert keys == {name[:13]}
            hours[name[:13]] += len(found) // 2
        assert sorted(hours.values()) == [4, 6]

    def test_a_shard_is_no_larger_than_asked_for(self, run, tmp_path):
        limit = 100_000
        made = export(run, tmp_path / "shards", ["webdataset"], shard_bytes=limit)
        assert len(made.files) > 2
        for name in made.files:
            data = (tmp_path / "shards" / name).read_bytes()
            held = sum(512 + -(-len(each) // 512) * 512 for each in members(data).values())
            assert held + 1024 <= limit

    def test_a_sample_larger_than_a_shard_has_one_to_itself(self, run, tmp_path):
        made = export(run, tmp_path / "shards", ["webdataset"], shard_bytes=1)
        assert len(made.files) == 10
        assert sorted(made.files)[1].endswith("-00001.tar")

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_the_webdataset_package_reads_them(self, run, tmp_path):
        import webdataset as wds

        made = export(run, tmp_path / "shards", ["webdataset"])
        urls = [str(tmp_path / "shards" / name) for name in sorted(made.files)]
        pipe = wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode("l8")
        seen = [(sample["png"], sample["json"]) for sample in pipe]
        expected = lines(run / "metadata.jsonl")
        assert [record["file_name"] for _, record in seen] == [r["file_name"] for r in expected]
        first = np.asarray(Image.open(run / expected[0]["file_name"]))
        np.testing.assert_array_equal(np.asarray(seen[0][0]), first)

    def test_arrays_too(self, recording, tmp_path):
        extract(recording, tmp_path / "run", recipe(**{"image.format": "npy"}))
        made = export(tmp_path / "run", tmp_path / "shards", ["webdataset"])
        found = members((tmp_path / "shards" / min(made.files)).read_bytes())
        record = lines(tmp_path / "run/metadata.jsonl")[0]
        key = Path(record["array_file"]).name
        np.testing.assert_array_equal(
            np.load(io.BytesIO(found[key])), np.load(tmp_path / "run" / record["array_file"])
        )

    def test_bytes_depend_on_the_run_alone(self, run, tmp_path):
        export(run, tmp_path / "a", ["webdataset"])
        export(run, tmp_path / "b", ["webdataset"])
        assert content(tmp_path / "a") == content(tmp_path / "b")

    def test_names_of_the_notebook_become_names_that_every_reader_takes(self):
        name = "images/2021-11-01T23:11:14.834000000_start20419.0.png"
        assert webdataset.sample_key(name) == ("2021-11-01T231114-834000000_start20419-0", "png")

    def test_an_image_that_is_not_its_record_s_is_refused(self, recording, tmp_path):
        extract(recording, tmp_path / "run", recipe())
        broken = lines(tmp_path / "run/metadata.jsonl")[3]["file_name"]
        (tmp_path / "run" / broken).write_bytes(b"half")
        with pytest.raises(DestinationError, match=r"not what its record says.*verify.*--repair"):
            export(tmp_path / "run", tmp_path / "shards", ["webdataset"])
        names = set(content(tmp_path / "shards"))
        assert names == {"export.json"}
        assert json.loads((tmp_path / "shards/export.json").read_text())["files"] is None


class TestLists:
    def test_coco_lists_every_image_with_its_size_and_record(self, run, tmp_path):
        export(run, tmp_path / "lists", ["coco"], labels=["fin whale", "ship"])
        found = json.loads((tmp_path / "lists/coco.json").read_text())
        assert set(found) == {"info", "licenses", "categories", "annotations", "images"}
        assert found["annotations"] == []
        assert [(each["id"], each["name"]) for each in found["categories"]] == [
            (1, "fin whale"),
            (2, "ship"),
        ]
        expected = lines(run / "metadata.jsonl")
        assert len(found["images"]) == len(expected)
        for image, record in zip(found["images"], expected, strict=True):
            with Image.open(run / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
            assert image["date_captured"] == record["start_time"]
            assert image["distance_stop_m"] == record["distance_stop_m"]

    def test_the_coco_package_loads_the_list_and_finds_the_images(self, run, tmp_path):
        from pycocotools.coco import COCO

        export(run, tmp_path / "lists", ["coco"], labels=["fin whale", "ship"])
        coco = COCO(tmp_path / "lists/coco.json")
        expected = lines(run / "metadata.jsonl")
        loaded = coco.loadImgs(sorted(coco.getImgIds()))
        assert [image["file_name"] for image in loaded] == [each["file_name"] for each in expected]
        for image in loaded:
            with Image.open(run / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
        (whale,) = coco.loadCats(coco.getCatIds(catNms=["fin whale"]))
        drawn = {"image_id": loaded[0]["id"], "category_id": whale["id"], "bbox": [10, 20, 30, 40]}
        found = coco.loadRes([drawn | {"score": 0.9}])
        assert found.getAnnIds(imgIds=[loaded[0]["id"]], catIds=[whale["id"]]) == [1]

    def test_an_image_keeps_its_number_when_tiles_before_it_come_to_make_one(
        self, recording, tmp_path
    ):
        extract(recording, tmp_path / "run", recipe(), segment_minutes=0.25)
        export(tmp_path / "run", tmp_path / "all", ["coco"])
        (tmp_path / "run/segments/00001.jsonl").unlink()
        made = export(tmp_path / "run", tmp_path / "some", ["coco"])
        assert made.to_do == 1
        numbers = [
            {each["file_name"]: each["id"] for each in json.loads(path.read_text())["images"]}
            for path in (tmp_path / "all/coco.json", tmp_path / "some/coco.json")
        ]
        assert list(numbers[0].values()) == list(range(1, 11))
        assert len(numbers[1]) == 8
        assert numbers[1].items() < numbers[0].items()

    def test_label_studio_has_a_task_for_each_image_and_labels_to_give(self, run, tmp_path):
        export(run, tmp_path / "lists", ["label-studio"], labels=['20 Hz "A" & B'])
        tasks = json.loads((tmp_path / "lists/label-studio.json").read_text())
        expected = lines(run / "metadata.jsonl")
        for task, record in zip(tasks, expected, strict=True):
            address = f"/data/local-files/?d=images/{record['file_name']}"
            assert task["data"]["image"] == address
            assert task["data"]["start_time"] == record["start_time"]
            assert task["meta"]["sha256"] == record["sha256"]
        view = ET.fromstring((tmp_path / "lists/label-studio.xml").read_text())  # noqa: S314 - ours
        assert [label.get("value") for label in view.iter("Label")] == ['20 Hz "A" & B']
        assert view.find("Image").get("value") == "$image"

    def test_another_address_of_the_images_can_be_given(self, run, tmp_path):
        export(run, tmp_path / "lists", ["label-studio"], image_url="https://example.org/run/")
        tasks = json.loads((tmp_path / "lists/label-studio.json").read_text())
        assert tasks[0]["data"]["image"].startswith("https://example.org/run/images/2021")

    def test_arrays_are_no_images(self, recording, tmp_path):
        extract(recording, tmp_path / "run", recipe(**{"image.format": "npy"}))
        with pytest.raises(UsageError, match="arrays, and coco shows images"):
            export(tmp_path / "run", tmp_path / "lists", ["coco"])
        assert not (tmp_path / "lists").exists()


class TestDestination:
    KINDS = ("webdataset", "coco", "label-studio")

    def test_the_same_again_changes_nothing(self, run, tmp_path):
        first = export(run, tmp_path / "dest", self.KINDS)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "dest").iterdir()}
        again = export(run, tmp_path / "dest", self.KINDS)
        assert (first.finished_before, again.finished_before) == (False, True)
        assert again.files == first.files
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "dest").iterdir()} == before

    def test_hashes_are_those_of_the_files(self, run, tmp_path):
        made = export(run, tmp_path / "dest", self.KINDS)
        found = content(tmp_path / "dest")
        del found["export.json"]
        assert made.files == {
            name: hashlib.sha256(data).hexdigest() for name, data in found.items()
        }

    def test_another_export_is_refused_and_overwritten_when_asked_for(self, run, tmp_path):
        export(run, tmp_path / "dest", ["webdataset"], shard_bytes=1)
        with pytest.raises(DestinationError, match=r"was 1, is 1000000000.*--overwrite"):
            export(run, tmp_path / "dest", ["webdataset"])
        export(run, tmp_path / "dest", ["webdataset"], overwrite=True)
        export(run, tmp_path / "fresh", ["webdataset"])
        assert content(tmp_path / "dest") == content(tmp_path / "fresh")

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_something_else_is_left_alone(self, run, tmp_path, overwrite):
        (tmp_path / "dest").mkdir()
        (tmp_path / "dest/cat.png").write_bytes(b"cat")
        with pytest.raises(DestinationError, match=r"something else.*cat.png"):
            export(run, tmp_path / "dest", ["coco"], overwrite=overwrite)
        assert content(tmp_path / "dest") == {"cat.png": b"cat"}

    def test_what_was_stopped_is_continued_to_the_same_bytes(self, run, tmp_path, monkeypatch):
        put = LocalSink.open_writer
        calls = []

        def failing(sink, key):
            calls.append(key)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return put(sink, key)

        with monkeypatch.context() as patch:
            patch.setattr(LocalSink, "open_writer", failing)
            with pytest.raises(KeyboardInterrupt):
                export(run, tmp_path / "dest", ["webdataset"], shard_bytes=1)
        assert len([name for name in content(tmp_path / "dest") if "tar" in name]) == 2
        assert not export(run, tmp_path / "dest", ["webdataset"], shard_bytes=1).finished_before
        export(run, tmp_path / "fresh", ["webdataset"], shard_bytes=1)
        assert content(tmp_path / "dest") == content(tmp_path / "fresh")

    def test_a_place_inside_the_run_is_refused(self, run):
        for dest in (run, run / "export"):
            with pytest.raises(UsageError, match="inside of the run"):
                export(run, dest, ["coco"])

    @pytest.mark.slow
    def test_from_a_container_to_a_container(self, recording, run, azurite, tmp_path, monkeypatch):
        monkeypatch.setenv("CONNECTION", azurite.connection_string)
        owner = Access(Credential.parse("connection-string:CONNECTION"))
        container = azurite.create_container("exports")
        out, dest = azurite.url(container, "run"), azurite.url(container, "dest")
        extract(recording, out, recipe(), out_access=owner)
        made = export(out, dest, self.KINDS, access=owner, dest_access=owner)
        local = export(run, tmp_path / "dest", self.KINDS)
        assert {name: made.files[name] for name in made.files if "tar" in name} == {
            name: local.files[name] for name in local.files if "tar" in name
        }
        tasks = json.loads(open_sink(dest, owner).get("label-studio.json"))
        assert tasks[0]["data"]["image"].startswith(f"{out}/images/")


class TestCommand:
    def test_it_writes_what_it_is_asked_for(self, run, tmp_path, capsys):
        dest = str(tmp_path / "dest")
        command = ["export", str(run), dest, "--webdataset", "--coco", "--shard-size", "100kB"]
        assert cli.main([*command, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["images"] == 10
        assert set(told["files"]) == set(content(tmp_path / "dest")) - {"export.json"}
        assert cli.main(command) == 0
        assert "already" in capsys.readouterr().out

    def test_it_says_what_is_wrong(self, run, tmp_path, capsys):
        dest = str(tmp_path / "dest")
        assert cli.main(["export", str(run), dest]) == 2
        assert "--webdataset, --coco or --label-studio" in capsys.readouterr().err
        assert cli.main(["export", str(run), dest, "--webdataset", "--shard-size", "big"]) == 2
        assert "500MB" in capsys.readouterr().err
        assert cli.main(["export", str(tmp_path / "no"), dest, "--coco"]) == 6
        assert "no run" in capsys.readouterr().err
