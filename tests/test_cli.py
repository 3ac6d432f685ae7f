"""The command line: results, messages, progress, exit codes, precedence of settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from das_gpu.cli import console, main, options
from das_gpu.recipe import Recipe
from tests.archives import random_walk, write_archive
from tests.outputs import files
from tests.terminal import on_terminal

COMMAND = [sys.executable, "-m", "das_gpu"]
SMALL = ["--bands", "2", "--tile-seconds", "5"]


@dataclass(frozen=True)
class Answer:
    """What a command returned, wrote to stdout and to stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


class Runner:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Answer:
        self._capsys.readouterr()
        code = main([str(each) for each in arguments])
        written = self._capsys.readouterr()
        return Answer(code, written.out, written.err)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DAS_GPU_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 channels, 20 s at 200 Hz, chunks of 20 channels x 5 s."""
    path = tmp_path_factory.mktemp("archive") / "small.zarr"
    return write_archive(path, random_walk(60, 4000, seed=1), 200.0, (20, 1000))


def process(*arguments: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own, off any terminal."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)


def measured(*arguments: object) -> tuple[subprocess.CompletedProcess[str], float, int]:
    """Run a command as a process of its own; return its answer, processor seconds, peak bytes."""
    # Not getrusage: its peak counts from before the exec, when the child was this process.
    script = (
        "import sys, time; from das_gpu.cli import main; code = main(sys.argv[1:]); "
        "status = dict(line.split(':', 1) for line in open('/proc/self/status')); "
        "spent = (str(time.process_time()), status['VmHWM'].split()[0]); "
        "sys.stderr.write('\\n' + ' '.join(spent)); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seconds, peak_kib = answer.stderr.rpartition("\n")[2].split()
    return answer, float(seconds), int(peak_kib) * 1024


# --- each command as a whole process ----------------------------------------------------


@pytest.mark.slow
def test_extract_makes_images_and_says_where_they_are(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = process("extract", archive, out, *SMALL)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == ""
    assert "note: The archive does not state its channel spacing" in answer.stderr
    assert "Computing on the CPU" in answer.stderr
    assert re.search(r"8 images of 8 tiles \(4 edge, 4 ok\).* s, .* tiles/s\.", answer.stderr)
    assert f"Images: {out / 'images'}; manifest: {out / 'metadata.jsonl'}." in answer.stderr
    assert len(list((out / "images").rglob("*.png"))) == 8


def test_info_shows_what_the_archive_holds(archive: Path) -> None:
    answer = process("info", archive)
    assert answer.returncode == 0, answer.stderr
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in answer.stdout.splitlines())
    assert rows["shape"] == "60 channels x 4,000 samples"
    assert rows["sampling rate"] == "200 Hz (measured from RawDataTime)"
    assert rows["channel spacing"].startswith("2.0419 m (assumed)")
    assert rows["first sample"] == "2021-11-01T23:11:14.834Z"
    assert rows["duration"] == "20 s"
    assert rows["decoded size"] == "960 kB"
    assert "blosc" in rows["chunks"]
    assert "Zarr format 2" in rows["archive"]


@pytest.mark.slow
def test_plan_shows_what_would_be_done(archive: Path) -> None:
    answer = process("plan", archive, *SMALL)
    assert answer.returncode == 0, answer.stderr
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in answer.stdout.splitlines())
    assert rows["tiles"] == "8 = 4 rows x 2 bands"
    assert rows["a tile"] == "6 channels x 500 samples kept"
    assert rows["last tile ends"] == "2021-11-01T23:11:34.834Z"
    assert rows["reading"] == "960 kB decoded, 16 requests"


def test_recipe_prints_toml_that_gives_the_same_recipe() -> None:
    answer = process("recipe", "--preset", "notebook", "--low", "10")
    assert answer.returncode == 0, answer.stderr
    expected = Recipe.load("notebook", settings={"filter.low_hz": 10.0})
    assert Recipe.from_toml(answer.stdout) == expected


def test_simulate_writes_an_archive_that_info_reads(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "scene.zarr"
    length = ["--channels", 100, "--minutes", 0.5, "--rate", 100, "--seed", 7]
    answer = process("simulate", path, *length, "--gap", 3, "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["shape"] == [100, 3000]
    facts = run("info", path, "--json").json
    assert (facts["channels"], facts["samples"], facts["sampling_rate_hz"]) == (100, 3000, 100.0)
    assert facts["duration_s"] == pytest.approx(30 + 3 - 0.01)


def test_simulate_refuses_to_write_over_something(run: Runner, tmp_path: Path) -> None:
    answer = run("simulate", tmp_path)
    assert answer.code == 6
    assert "something is there already" in answer.err


# --- help -------------------------------------------------------------------------------


def test_defaults_that_the_help_names_are_the_recipes_own(run: Runner) -> None:
    table = run("recipe", "--help").out.partition("╭")[2]
    text = " ".join(table.replace("│", " ").split())
    recipe = Recipe().model_dump()
    named = 0
    for field, setting in options._SETTINGS.items():
        section, key = setting.split(".")
        default = recipe[section][key]
        flag = options._flag(field)
        found = re.search(rf" {flag} [^\[]*?\[default: ([^\]]*)\]", text)
        assert found is not None, flag
        if default is not None:
            assert found[1] == (f"{default:g}" if isinstance(default, float) else str(default))
            named += 1
    assert named == 15


def test_version_is_the_packages(run: Runner) -> None:
    from importlib.metadata import version

    assert run("--version").out.strip() == version("das-gpu")


# --- machines ---------------------------------------------------------------------------


def test_json_of_a_run_is_one_object_on_stdout(run: Runner, archive: Path, tmp_path: Path) -> None:
    answer = run("extract", archive, tmp_path / "out", *SMALL, "--json")
    facts = answer.json
    assert facts["exit_code"] == answer.code == 0
    assert facts["out"] == str(tmp_path / "out")
    assert facts["images"] == facts["made"] == 8
    assert facts["tiles"]["ok"] == facts["tiles"]["edge"] == 4
    assert facts["backend"] == "cpu"


def test_json_of_the_other_commands(run: Runner, archive: Path) -> None:
    assert run("info", archive, "--json").json["chunk_samples"] == 1000
    assert run("recipe", "--json").json["digest"] == Recipe().digest
    planned = run("plan", archive, *SMALL, "--json").json
    assert (planned["tiles"], planned["rows"], planned["bands"]) == (8, 4, 2)
    assert planned["decoded_bytes"] == 60 * 4000 * 4
    assert planned["requests"] == 3 * 4 + 4


def test_json_of_an_error_is_an_object_too(run: Runner, tmp_path: Path) -> None:
    answer = run("info", tmp_path / "nowhere.zarr", "--json")
    assert answer.code == 4
    assert answer.json["error"] == "SourceNotFoundError"
    assert answer.json["exit_code"] == 4
    assert answer.json["message"] in answer.err
    unknown = run("info", "--json", "--no-such-option")
    assert (unknown.code, unknown.json["error"]) == (2, "UsageError")


def test_dry_run_is_the_plan_and_writes_nothing(run: Runner, archive: Path, tmp_path: Path) -> None:
    dry = run("extract", archive, tmp_path / "out", *SMALL, "--dry-run")
    assert dry == run("plan", archive, *SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, written = os.pipe()
    os.close(read)
    with os.fdopen(written, "w") as closed:
        answer = subprocess.run(
            [*COMMAND, "recipe"], stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert answer.stderr == ""
    assert answer.returncode == 141


# --- reruns -----------------------------------------------------------------------------


def test_rerun_of_a_finished_run_does_nothing(run: Runner, archive: Path, tmp_path: Path) -> None:
    command = ["extract", archive, tmp_path / "out", *SMALL]
    run(*command)
    before = files(tmp_path / "out")
    again = run(*command)
    assert again.code == 0
    assert "Nothing to do" in again.err
    assert "(4 edge, 4 ok)" in again.err
    assert files(tmp_path / "out") == before


@pytest.mark.slow
def test_changed_recipe_is_refused_until_overwrite_is_given(
    run: Runner, archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("extract", archive, out, *SMALL)
    before = files(out)
    changed = ["extract", archive, out, *SMALL, "--high", 30]
    answer = run(*changed)
    assert answer.code == 2
    assert re.search(r"recipe\S*: was .*, is .*--overwrite", answer.err)
    assert files(out) == before
    assert run(*changed, "--overwrite").code == 0
    assert files(out) != before


# --- what wins --------------------------------------------------------------------------


def low_and_high(answer: Answer) -> tuple[float, float]:
    found = answer.json["recipe"]["filter"]
    return found["low_hz"], found["high_hz"]


@pytest.mark.slow
def test_flag_wins_over_environment_over_file_over_preset(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[filter]\nlow_hz = 11.0\nhigh_hz = 31.0\n")
    command = ["recipe", "--json", "--config", file]
    assert low_and_high(run("recipe", "--json")) == (14.0, 35.0)
    assert low_and_high(run(*command)) == (11.0, 31.0)
    monkeypatch.setenv("DAS_GPU_LOW", "12")
    assert low_and_high(run(*command)) == (12.0, 31.0)
    assert low_and_high(run(*command, "--low", 13)) == (13.0, 31.0)
    assert low_and_high(run(*command, "--set", "filter.low_hz=13.5")) == (13.5, 31.0)
    assert low_and_high(run(*command, "--set", "filter.low_hz=9", "--low", 13)) == (13.0, 31.0)


def test_environment_names_options_and_never_places(
    run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DAS_GPU_CHANNELS", "10:90:4")
    monkeypatch.setenv("DAS_GPU_TILE_SECONDS", "7.5")
    monkeypatch.setenv("DAS_GPU_JSON", "1")
    found = run("recipe", "--set", "selection.channel_step=2").json["recipe"]
    selection = found["selection"]
    assert found["tile"]["seconds"] == 7.5
    chosen = [selection[f"channel_{part}"] for part in ("start", "stop", "step")]
    assert chosen == [10, 90, 2]
    monkeypatch.setenv("DAS_GPU_OUT", str(tmp_path / "out"))
    missing = run("extract", "demo:")
    assert missing.code == 2
    assert "OUT" in missing.err


def test_simulate_takes_nothing_from_the_environment(
    run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DAS_GPU_CHANNELS", "10000::5")
    answer = run("simulate", tmp_path / "a.zarr", "--channels", 20, "--minutes", 0.1, "--json")
    assert answer.json["shape"] == [20, 1200]


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (
            ["--channels", "5:50:3"],
            {
                "selection.channel_start": 5,
                "selection.channel_stop": 50,
                "selection.channel_step": 3,
            },
        ),
        (["--channel-reduce", "mean"], {"selection.channel_reduce": "mean"}),
        (["--start", "2021-11-02"], {"selection.start": "2021-11-02"}),
        (["--stop", "2021-11-02T01:00+01:00"], {"selection.stop": "2021-11-02T00:00Z"}),
        (["--time-step", 3], {"selection.time_step": 3}),
        (["--sampling-rate", 500], {"archive.sampling_rate_hz": 500.0}),
        (["--channel-spacing", 1.5], {"archive.channel_spacing_m": 1.5}),
        (["--data", "strain", "--time", "t"], {"archive.data": "strain", "archive.time": "t"}),
        (
            ["--low", 10, "--high", 20, "--order", 4],
            {"filter.low_hz": 10.0, "filter.high_hz": 20.0, "filter.order": 4},
        ),
        (["--filter", "iir", "--halo", "1.5"], {"filter.method": "iir", "filter.halo_s": 1.5}),
        (["--halo", "auto"], {}),
        (
            ["--median", "none", "--dtype", "float64"],
            {"median.kind": "none", "compute.dtype": "float64"},
        ),
        (["--tile-seconds", 30, "--bands", 4], {"tile.seconds": 30.0, "tile.bands": 4}),
        (
            ["--format", "npy", "--scale", "fixed:-10:60.5"],
            {"image.format": "npy", "image.scale": "fixed:-10:60.5"},
        ),
        (
            ["--image-size", "128x512", "--orientation", "time-right"],
            {"image.height": 128, "image.width": 512, "image.orientation": "time-right"},
        ),
        (
            ["--set", "image.names=notebook", "--set", "tile.bands = 3"],
            {"image.names": "notebook", "tile.bands": 3},
        ),
    ],
)
def test_every_flag_sets_what_it_says(
    run: Runner, flags: list[object], settings: dict[str, Any]
) -> None:
    assert Recipe.from_toml(run("recipe", *flags).out) == Recipe.load(settings=settings)


# --- messages and progress --------------------------------------------------------------


@pytest.mark.slow
def test_no_progress_off_a_terminal(archive: Path, tmp_path: Path) -> None:
    answer = process("extract", archive, tmp_path / "out", *SMALL)
    assert "\r" not in answer.stderr
    assert "\x1b" not in answer.stderr
    assert "extracting" not in answer.stderr


@pytest.mark.slow
def test_progress_on_a_terminal(archive: Path, tmp_path: Path) -> None:
    command = ["extract", str(archive), str(tmp_path / "out"), *SMALL]
    code, shown = on_terminal(command, NO_COLOR="")
    assert code == 0, shown
    assert "8/8 tiles" in shown
    assert "tiles/s" in shown
    assert "left" in shown
    assert "\x1b[3" in shown  # in colour


@pytest.mark.slow
def test_no_colour_when_asked_for_none(archive: Path, tmp_path: Path) -> None:
    command = ["extract", str(archive), str(tmp_path / "out"), *SMALL]
    code, shown = on_terminal(command, NO_COLOR="1")
    assert code == 0, shown
    assert "8/8 tiles" in shown
    assert re.search(r"\x1b\[[0-9;]*3[0-9](;|m)", shown) is None


@pytest.mark.slow
def test_first_use_of_the_demonstration_says_that_it_is_made(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, again = run("info", "demo:"), run("info", "demo:")
    assert "Making the demonstration archive, once" in first.err
    assert again.err == ""
    assert first.out == again.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extrct"], 'Did you mean "extract"?'),
        (["extract", "a"], "OUT requires an argument"),
        (["extract", "a", "b", "c"], "c"),
        (["plan", "a", "--lo", "3"], "Did you mean --low?"),
        (["plan", "a", "--low", "x"], 'Invalid value for --low: unable to convert "x"'),
        (["plan", "a", "--filter", "fir"], '"spectral", "iir"'),
        (["extract", "a", "b", "--workers", "0"], "--workers 0"),
    ],
)
def test_wrong_command_lines_are_told_in_one_line(
    run: Runner, arguments: list[str], said: str
) -> None:
    answer = run(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("das-gpu: ")
    assert answer.err.count("\n") == 1
    assert said in answer.err
    if "workers" not in said:
        assert "--help" in answer.err


@pytest.mark.parametrize(
    ("flags", "environment", "compiled"),
    [([], None, False), (["--fast"], None, True), ([], "yes", True), (["--no-fast"], "yes", False)],
    ids=["too little to do", "asked for", "by the environment", "refused"],
)
def test_loops_are_compiled_when_there_is_enough_to_do_or_when_asked(
    run: Runner,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    environment: str | None,
    compiled: bool,
) -> None:
    pytest.importorskip("numba", reason="the extra `fast` is not installed")
    if environment is not None:
        monkeypatch.setenv("DAS_GPU_FAST", environment)
    out = tmp_path / "out"
    answer = run("extract", archive, out, *SMALL, "--backend", "cpu", *flags)
    assert answer.code == 0
    assert ("numba compiles its loops" in answer.err) is compiled
    backend = json.loads((out / "run.json").read_text())["backend"]
    assert ("numba" in backend["reason"]) is compiled


def test_explicit_gpu_that_is_not_there_is_refused(
    run: Runner, archive: Path, tmp_path: Path
) -> None:
    answer = run("extract", archive, tmp_path / "out", *SMALL, "--backend", "gpu")
    assert answer.code == 2
    assert "--backend cpu" in answer.err
    assert not (tmp_path / "out").exists()


def test_unexpected_errors_are_told_and_traced_only_on_request(
    run: Runner, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("das_gpu.run.prepare", fail)
    answer = run("plan", archive)
    assert answer.code == 1
    assert "ZeroDivisionError: division by zero" in answer.err
    assert "--debug" in answer.err
    assert "Traceback" not in answer.err
    assert "Traceback" in run("plan", archive, "--debug").err
    monkeypatch.setenv("DAS_GPU_DEBUG", "1")
    assert "Traceback" in run("plan", archive).err


def test_interruption_says_how_to_go_on(
    run: Runner, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("das_gpu.run.prepare", interrupt)
    answer = run("plan", archive)
    assert answer.code == 130
    assert "run the same command again" in answer.err


@pytest.mark.slow
def test_interrupted_run_is_continued_by_the_same_command(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a run: 130, no traceback; then the rest is made."""
    source = write_archive(
        tmp_path / "long.zarr", random_walk(60, 120_000, seed=2), 200.0, (20, 1000)
    )
    command = ["extract", str(source), str(tmp_path / "out"), *SMALL, "--segment-minutes", "0.5"]
    child = subprocess.Popen([*COMMAND, *command], stderr=subprocess.PIPE, text=True)
    done = tmp_path / "out" / "segments"
    deadline = time.monotonic() + 60
    while not (done.is_dir() and any(done.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(2)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert "the same command continues" in err
    saved = len(list(done.iterdir()))
    answer = process(*command, "--json")
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout)
    assert facts["images"] == 240
    assert facts["made"] == 240 - 12 * saved


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999 bytes"), (36_000_000, "36 MB"), (7.44e12, "7.44 TB"), (2e16, "2e+04 TB")],
)
def test_bytes_are_told_in_decimal_units(number: float, text: str) -> None:
    assert console.bytes_text(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (59.96, "1 min 0 s"), (3599.9, "59 min 59.9 s"), (7199.9, "2 h 0 min")],
)
def test_durations_are_told_without_sixty_seconds(seconds: float, text: str) -> None:
    assert console.duration_text(seconds) == text


# --- the published archive --------------------------------------------------------------


@pytest.mark.slow
def test_plan_and_info_of_the_published_archive_are_quick_and_small(tmp_path: Path) -> None:
    """47,500 channels x 39,168,000 samples: metadata and time axis are there, samples aren't."""
    from das_gpu.simulate import Scene, simulate

    scene = Scene(channels=47_500, seconds=39_168_000 / 200, chunk_shape=(3000, 3000))
    path = simulate(tmp_path / "published.zarr", scene, samples=False)
    for arguments in (["plan", "--channels", "10000::5"], ["info"]):
        answer, seconds, peak_bytes = measured(*arguments, path, "--json")
        assert answer.returncode == 0, answer.stderr
        assert seconds < 5
        assert peak_bytes < 400e6
        facts = json.loads(answer.stdout)
        if arguments[0] == "plan":
            assert facts["tiles"] == 130_560
            assert (facts["rows"], facts["bands"], facts["segments"]) == (13_056, 10, 218)
            assert facts["tile_channels"] == 750
            assert 1 < facts["read_amplification"] < 1.1
        else:
            assert facts["decoded_bytes"] == 47_500 * 39_168_000 * 4
