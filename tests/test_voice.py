"""How much commands say, where they say it, and that scripts get the same keys every time."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from das_gpu.cli import main
from das_gpu.cli.pages import PAGES
from tests.archives import random_walk, write_archive
from tests.azurite import KEY
from tests.hdf5 import write_prodml
from tests.terminal import on_terminal

SMALL = ["--bands", "2", "--tile-seconds", "5", "--backend", "cpu"]
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9](;|m)")

KEYS = {
    "info": "location container zarr_format data time counter quality channels samples stored_dims "
    "dtype chunk_channels chunk_samples codec sampling_rate_hz sampling_rate_origin "
    "channel_spacing_m channel_spacing_origin first_time last_time duration_s decoded_bytes files "
    "gaps exit_code",
    "plan": "tiles rows bands tile_channels tile_samples segments rows_per_segment halo_before_s "
    "halo_after_s common_mode decoded_bytes requests read_amplification loaders memory_bytes "
    "first_tile_time last_tile_end unused_channels unused_samples notes recipe_digest exit_code",
    "preview": "source recipe_digest status reason start_time end_time row band bands "
    "channel_start channel_stop channel_step distance_start_m distance_stop_m dead_channels db_low "
    "db_high db_reference steps chunks stored_bytes notes exit_code picture shown",
    "recipe": "recipe digest exit_code",
    "extract": "out tiles made seconds stored_bytes chunks backend backend_reason notes warnings "
    "quarantined images tiles_per_s finished_before exit_code report",
    "status": "out created das_gpu segments tiles quarantined failures holder state exit_code",
    "verify": "out segments to_do put_back tiles images faults extra manifests foreign holder "
    "damaged repaired seconds exit_code",
    "report": "page tiles images thumbnails left_out unreadable sheets_made sheets_beside bytes "
    "seconds exit_code",
    "export": "dest images files to_do finished_before exit_code",
    "index": "index index_bytes files bytes channels samples dtype sampling_rate_hz joined gaps "
    "exit_code",
    "simulate": "archive shape exit_code",
    "doctor": "machine gpu backend cluster exit_code",
}
"""What --json gives, by command; what it gives of a measurement, tests of bench say."""


@pytest.fixture(autouse=True)
def a_plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DAS_GPU_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 channels, 20 s at 200 Hz."""
    path = tmp_path_factory.mktemp("archive") / "small.zarr"
    return write_archive(path, random_walk(60, 4000, seed=1), 200.0, (20, 1000))


@pytest.fixture(scope="module")
def finished(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight images."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["extract", str(archive), str(out), *SMALL]) == 0
    return out


def said(capsys: pytest.CaptureFixture[str], *command: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()
    code = main([str(each) for each in command])
    return code, *capsys.readouterr()


# --- quiet ------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_a_quiet_run_says_nothing(archive: Path, tmp_path: Path, capsys, flag: str) -> None:
    assert said(capsys, "extract", archive, tmp_path / "out", *SMALL, flag) == (0, "", "")


@pytest.mark.parametrize("command", ["status", "verify", "report"])
def test_the_exit_code_alone_tells_of_a_run(finished: Path, capsys, command: str) -> None:
    assert said(capsys, command, finished, "-q") == (0, "", "")


def test_a_quiet_command_still_says_what_failed(tmp_path: Path, capsys) -> None:
    code, out, err = said(capsys, "status", tmp_path / "nothing", "-q")
    assert (code, out) == (6, "")
    assert err.startswith("das-gpu: There is no run in ")


def test_what_was_asked_for_as_a_document_is_written_by_a_quiet_command(
    archive: Path, capsys
) -> None:
    assert "[filter]" in said(capsys, "recipe", "-q")[1]
    assert json.loads(said(capsys, "info", archive, "-q", "--json")[1])["channels"] == 60
    assert said(capsys, "info", archive, "-q") == (0, "", "")


def test_the_environment_can_ask_for_quiet(archive: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("DAS_GPU_QUIET", "1")
    assert said(capsys, "plan", archive, *SMALL[:4]) == (0, "", "")


@pytest.mark.slow
def test_no_progress_is_drawn_when_quiet(archive: Path, tmp_path: Path) -> None:
    command = ["extract", str(archive), str(tmp_path / "out"), *SMALL, "-q"]
    assert on_terminal(command) == (0, "")


def test_quiet_and_verbose_together_are_refused(capsys) -> None:
    code, _, err = said(capsys, "recipe", "-q", "-v")
    assert code == 2
    assert "give one of them" in err


# --- verbose ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_verbose_run_says_what_it_does_and_when(archive: Path, tmp_path: Path, capsys) -> None:
    code, out, err = said(capsys, "extract", archive, tmp_path / "out", *SMALL, "-v")
    assert (code, out) == (0, "")
    for step in (
        r"plan: 8 tiles in 1 segments, 12 chunks to read, [\d.]+ samples read per sample in tiles",
        r"run begun: .*backend cpu, reason ",
        r"segment finished: segment 0, tiles 8",
        r"read: 12 chunks, [\d.]+ kB as stored",
    ):
        assert re.search(rf"^ +\d+\.\d\d\d s  {step}", err, re.MULTILINE), step
    assert "run begun" not in said(capsys, "extract", archive, tmp_path / "two", *SMALL)[2]


@pytest.mark.parametrize("transport", ["obstore", "azure-sdk"])
def test_verbose_tells_the_kind_and_place_of_a_credential_and_never_its_value(
    azurite, archive: Path, capsys, monkeypatch, transport: str
) -> None:
    azurite.create_container("quiet")
    azurite.upload_folder(archive, "quiet", "a.zarr")
    monkeypatch.setenv("MY_KEY", KEY)
    source = azurite.url("quiet", "a.zarr")
    named = ["--credential", "key:MY_KEY", "--transport", transport]
    code, _, err = said(capsys, "info", source, *named, "-v")
    assert code == 0, err
    assert "credential: place http://127.0.0.1" in err
    assert "kind key, found_in MY_KEY" in err
    assert KEY not in err


def test_verbose_tells_of_requests_that_are_made_again(capsys, monkeypatch) -> None:
    from das_gpu.cli import console
    from das_gpu.errors import SourceError
    from das_gpu.patience import Patience, Transient, patiently

    monkeypatch.setattr("time.sleep", lambda _: None)
    failures = [Transient(SourceError("HTTP status 503"))]

    def attempt(_: object) -> str:
        if failures:
            raise failures.pop()
        return "there"

    with console.speaking(verbose=True):
        assert patiently(attempt, Patience()) == "there"
    assert re.search(
        r"asked again: attempt 1, pause_s [\d.]+, reason HTTP status 503", capsys.readouterr().err
    )


# --- colour -----------------------------------------------------------------------------


@pytest.mark.slow
def test_errors_and_verdicts_are_in_colour_on_a_terminal(finished: Path, tmp_path: Path) -> None:
    _, failed = on_terminal(["status", str(tmp_path)], NO_COLOR="")
    assert failed.startswith("\x1b[31mdas-gpu:\x1b[0m ")
    _, told = on_terminal(["status", str(finished)], NO_COLOR="")
    assert re.search(r"verdict +\x1b\[32mFinished\.\x1b\[0m", told)


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.slow
def test_colour_can_be_switched_off(
    finished: Path, tmp_path: Path, setting: dict[str, str]
) -> None:
    for folder in (tmp_path, finished):
        _, shown = on_terminal(["status", str(folder)], **{"NO_COLOR": "", **setting})
        assert "das-gpu:" in shown or "verdict" in shown
        assert not COLOUR.search(shown)


def test_there_is_no_colour_off_a_terminal(finished: Path, tmp_path: Path, capsys) -> None:
    for folder in (tmp_path, finished):
        _, out, err = said(capsys, "status", folder)
        assert "\x1b" not in out + err


# --- JSON -------------------------------------------------------------------------------


def test_json_of_every_command_that_has_results_is_looked_at() -> None:
    assert set(KEYS) == set(PAGES) - {"bench", "completion"}


@pytest.fixture
def commands(archive: Path, finished: Path, tmp_path: Path) -> dict[str, list[Any]]:
    """A command line for each of `KEYS`."""
    recording = write_prodml(tmp_path / "a.h5", random_walk(12, 3000, seed=2))
    return {
        "info": [archive],
        "plan": [archive, *SMALL[:4]],
        "preview": [archive, *SMALL[:4], "-o", tmp_path / "steps.png"],
        "recipe": [],
        "extract": [archive, tmp_path / "out", *SMALL],
        "status": [finished],
        "verify": [finished],
        "report": [finished],
        "export": [finished, tmp_path / "lists", "--coco"],
        "index": [recording, "-o", tmp_path / "a.json"],
        "simulate": [tmp_path / "new.zarr", "--channels", 10, "--minutes", 0.1],
        "doctor": [],
    }


@pytest.mark.parametrize("command", KEYS)
@pytest.mark.slow
def test_json_is_one_line_with_the_same_keys_every_time(
    commands: dict[str, list[Any]], capsys, command: str
) -> None:
    code, out, _ = said(capsys, command, *commands[command], "--json")
    assert out.count("\n") == 1
    facts = json.loads(out)
    assert set(facts) == set(KEYS[command].split())
    assert facts["exit_code"] == code


@pytest.mark.parametrize("command", ["info", "status", "verify", "report"])
def test_an_error_is_one_json_object_on_stdout_and_words_on_stderr(
    tmp_path: Path, capsys, command: str
) -> None:
    code, out, err = said(capsys, command, tmp_path / "nowhere", "--json")
    facts = json.loads(out)
    assert set(facts) == {"error", "message", "exit_code"}
    assert facts["exit_code"] == code in (4, 6)
    assert err == f"das-gpu: {facts['message']}\n"
