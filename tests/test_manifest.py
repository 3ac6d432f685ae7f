"""The manifest as one table: manifest.csv and manifest.parquet."""

from __future__ import annotations

import csv
import importlib.util

import numpy as np
import pytest

from das_gpu import Recipe, cli, extract, keys, manifest
from das_gpu.credentials import Credential
from das_gpu.errors import UsageError
from das_gpu.ledger import Ledger
from das_gpu.model import PLACE_FIELDS
from das_gpu.sink import LocalSink, open_sink
from das_gpu.store import Access
from das_gpu.verify import verify
from tests.archives import random_walk, write_archive
from tests.outputs import lines
from tests.test_ledger import HEADER, IDENTITY, load_dataset, make_record, make_segment

__all__ = ["load_dataset"]

BOTH = ("parquet", "csv")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Two rows of tiles; the time axis jumps in the second, which makes no image."""
    path = tmp_path_factory.mktemp("recording") / "recording.zarr"
    return write_archive(path, random_walk(40, 6000, seed=1), 200.0, (40, 3000))


@pytest.fixture(scope="module")
def run(recording, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    extract(recording, out, recipe(), manifest=BOTH)
    return out


def recipe(**settings):
    return Recipe().with_settings({"tile.bands": 2, **settings})


def as_csv(out):
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def as_table(out):
    import pyarrow.parquet as pq

    return pq.read_table(out / "manifest.parquet")


def test_both_tables_say_what_metadata_jsonl_says(run):
    expected = lines(run / "metadata.jsonl")
    assert len(expected) == 4
    text, table = as_csv(run), as_table(run).to_pylist()
    for line, plain, typed in zip(expected, text, table, strict=True):
        assert list(line) == list(plain) == list(typed)
        for name, value in line.items():
            there = None if (name, value) == ("reason", "") else value
            if name.endswith("_time"):
                assert np.datetime64(typed[name].tz_localize(None)) == np.datetime64(value[:-1])
            else:
                assert typed[name] == there
            assert plain[name] == ("" if there is None else str(there))


def test_parquet_columns_have_types_and_times_are_in_utc(run):
    kinds = {field.name: str(field.type) for field in as_table(run).schema}
    assert kinds["start_time"] == kinds["end_time"] == "timestamp[ns, tz=UTC]"
    assert kinds["db_low"] == kinds["distance_stop_m"] == "double"
    assert kinds["channel_start"] == kinds["quality"] == kinds["segment"] == "int64"
    assert kinds["file_name"] == kinds["reason"] == kinds["split_key"] == "string"
    assert set(kinds.values()) == {"string", "int64", "double", "timestamp[ns, tz=UTC]"}


def test_a_run_of_arrays_names_them(recording, tmp_path):
    extract(recording, tmp_path, recipe(**{"image.format": "npy"}), manifest=BOTH)
    assert as_table(tmp_path).schema.names[-1] == "array_file"
    assert as_csv(tmp_path)[0]["array_file"].endswith(".npy")
    assert "file_name" not in as_csv(tmp_path)[0]


def test_what_only_some_runs_have_is_a_column_of_theirs(recording, tmp_path):
    rows = "".join(f"{n},{-125 + n / 1000},45\n" for n in (0, 39))
    (tmp_path / "places.csv").write_text(f"channel,longitude,latitude\n{rows}")
    given = ["--positions", str(tmp_path / "places.csv"), "--units", "strain"]
    optics = ["--gauge-length", "51", "--bands", "2", "--channels", "::1"]
    command = ["extract", str(recording), str(tmp_path / "out"), "--manifest", "parquet,csv"]
    assert cli.main([*command, *given, *optics]) == 0
    expected = lines(tmp_path / "out" / "metadata.jsonl")
    assert expected[0]["db_reference"] == "1 strain"
    assert expected[0]["longitude_start"] == -125
    table = as_table(tmp_path / "out")
    assert table.schema.names == list(expected[0]) == list(as_csv(tmp_path / "out")[0])
    assert {str(table.schema.field(name).type) for name in PLACE_FIELDS} == {"double"}
    assert table.column("db_reference").to_pylist() == ["1 strain"] * len(expected)


def test_a_manifest_that_is_there_is_kept_up_to_date_without_being_asked_for(tmp_path):
    sink = LocalSink(tmp_path)
    ledger = Ledger.open(sink, IDENTITY, HEADER, n_segments=2)
    ledger.finish_segment(0, make_segment(0, ["ok", "gap"]))
    ledger.publish(manifest.kept(sink, ["csv"]))
    before = len(as_csv(tmp_path))
    assert len(lines(tmp_path / "metadata.jsonl")) == before > 0
    ledger.finish_segment(1, make_segment(1, ["ok", "ok"]))
    ledger.publish(manifest.kept(sink))
    assert len(as_csv(tmp_path)) == len(lines(tmp_path / "metadata.jsonl")) > before


def test_a_run_without_images_has_empty_tables_with_columns(tmp_path):
    ledger = Ledger.open(LocalSink(tmp_path), IDENTITY, HEADER, n_segments=1)
    ledger.publish(BOTH)
    assert as_csv(tmp_path) == []
    assert (tmp_path / "manifest.csv").read_text().startswith("file_name,status,segment,")
    assert as_table(tmp_path).num_rows == 0
    assert as_table(tmp_path).schema.names[0] == "file_name"


def test_levels_that_are_not_there_are_null_and_columns_keep_their_types(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "_ROW_GROUP", 2)
    ledger = Ledger.open(LocalSink(tmp_path), IDENTITY, HEADER, n_segments=3)
    for segment in range(3):
        levels = {} if segment else {"db_low": None, "db_high": None}
        tiles = [make_record(segment, segment, band, **levels) for band in range(3)]
        ledger.finish_segment(segment, tiles)
    ledger.publish(BOTH)
    table = as_table(tmp_path)
    assert table["db_low"].null_count == 3
    assert str(table.schema.field("db_low").type) == "double"
    assert [row["db_low"] == "" for row in as_csv(tmp_path)] == [True] * 3 + [False] * 6


def test_the_same_command_again_leaves_the_same_bytes(run, recording):
    before = [(run / f"manifest.{name}").read_bytes() for name in BOTH]
    extract(recording, run, recipe())
    assert [(run / f"manifest.{name}").read_bytes() for name in BOTH] == before


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("damage", ["cut", "flipped", "old"])
def test_verify_finds_and_mends_a_manifest_that_is_not_the_segments(
    name, damage, recording, tmp_path
):
    extract(recording, tmp_path, recipe(), manifest=BOTH)
    assert verify(tmp_path).exit_code == 0
    path = tmp_path / f"manifest.{name}"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[200] ^= 1
    elif damage == "cut":
        del data[-40:]
    else:
        other = tmp_path / "other"
        Ledger.open(LocalSink(other), IDENTITY, HEADER, n_segments=1).publish(BOTH)
        data = bytearray((other / path.name).read_bytes())
    good = path.read_bytes()
    path.write_bytes(data)
    assert verify(tmp_path).manifests == (path.name,)
    assert verify(tmp_path, repair=True).repaired
    assert path.read_bytes() == good


def test_a_manifest_is_a_file_of_the_run_and_goes_with_it(recording, tmp_path):
    assert {keys.kind_of(key) for key in keys.MANIFEST_KEYS.values()} == {"single"}
    extract(recording, tmp_path, recipe(), manifest=BOTH)
    assert verify(tmp_path).foreign == ()
    extract(recording, tmp_path, recipe(), overwrite=True)
    assert not list(tmp_path.glob("manifest.*"))


def test_without_pyarrow_parquet_is_refused_before_anything_is_done(
    recording, tmp_path, monkeypatch, capsys
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        manifest, "find_spec", lambda name: None if name == "pyarrow" else find(name)
    )
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"das-gpu\[parquet\]"):
        extract(recording, out, manifest=["parquet"])
    assert cli.main(["extract", str(recording), str(out), "--manifest", "csv,parquet"]) == 2
    assert "pip install 'das-gpu[parquet]'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_the_option_takes_a_list_and_may_be_repeated(recording, tmp_path, capsys):
    command = ["extract", str(recording), "--bands", "2"]
    assert cli.main([*command, str(tmp_path / "a"), "--manifest", "parquet,csv"]) == 0
    again = ["--manifest", "parquet", "--manifest", "csv"]
    assert cli.main([*command, str(tmp_path / "b"), *again]) == 0
    for out in (tmp_path / "a", tmp_path / "b"):
        assert sorted(path.suffix for path in out.glob("manifest.*")) == [".csv", ".parquet"]
    assert cli.main([*command, str(tmp_path / "c"), "--manifest", "xlsx"]) == 2
    assert "'xlsx'" in capsys.readouterr().err


def test_manifests_go_into_a_container(run, recording, azurite, monkeypatch):
    monkeypatch.setenv("CONNECTION", azurite.connection_string)
    owner = Access(Credential.parse("connection-string:CONNECTION"))
    out = azurite.url(azurite.create_container("manifests"), "run")
    extract(recording, out, recipe(), manifest=BOTH, out_access=owner)
    sink = open_sink(out, owner)
    for name in BOTH:
        key = f"manifest.{name}"
        assert sink.get(key) == (run / key).read_bytes()
    assert verify(out, owner).exit_code == 0


@pytest.mark.slow
def test_hugging_face_datasets_reads_a_folder_with_both_tables(run, load_dataset):
    rows = load_dataset(run)
    expected = lines(run / "metadata.jsonl")
    assert [row["sha256"] for row in rows] == [line["sha256"] for line in expected]
    assert rows[0]["image"].size == (256, 256)
