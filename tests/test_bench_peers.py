"""The comparison with peers: each does the job it is said to do, and figures are what they say.

The peers are not installed here. Stand-ins with the same names, built on SciPy, take their place;
everything else is the benchmark itself: its processes, its clock, its reference.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import signal

BENCH = Path(__file__).resolve().parents[1] / "bench"
DASCORE = """
from scipy import signal
class Patch:
    def __init__(self, data, coords, dims):
        assert dims == ("distance", "time")
        assert data.shape == (coords["distance"].size, coords["time"].size)
        self.data, self.coords, self.dims = data, coords, dims
    def pass_filter(self, corners=4, zerophase=True, *, time):
        assert zerophase
        steps = self.coords["time"][1:] - self.coords["time"][:-1]
        fs = 1e9 / steps[0].astype(int)
        sos = signal.butter(corners, time, "bandpass", fs=fs, output="sos")
        return Patch(signal.sosfiltfilt(sos, self.data), self.coords, self.dims)
    def decimate(self, filter_type="iir", *, time):
        data = signal.decimate(self.data, time) if filter_type else self.data[:, ::time]
        coords = {**self.coords, "time": self.coords["time"][::time]}
        return Patch(data, coords, self.dims)
    def envelope(self, dim):
        assert dim == "time"
        return Patch(abs(signal.hilbert(self.data)), self.coords, self.dims)
"""
XDAS = """
from types import SimpleNamespace
from scipy import signal
config = SimpleNamespace(set=lambda name, value: None)
class DataArray:
    def __init__(self, values, coords):
        time = coords["time"]
        assert values.shape == (coords["distance"].size, *time["tie_lengths"])
        self.values, self.coords = values, coords
        self.fs = 1e9 / time["sampling_interval"].astype(int)
    def isel(self, time):
        return DataArray.of(self, self.values[:, time])
    def __abs__(self):
        return DataArray.of(self, abs(self.values))
    @classmethod
    def of(cls, other, values):
        made = cls.__new__(cls)
        made.values, made.fs = values, other.fs
        return made
def filter(da, freq, order=4, zerophase=False):
    sos = signal.butter(order, freq, "bandpass", fs=da.fs, output="sos")
    return DataArray.of(da, (signal.sosfiltfilt if zerophase else signal.sosfilt)(sos, da.values))
def resample(da, rate):
    return DataArray.of(da, signal.resample_poly(da.values, rate, da.fs, axis=1))
def hilbert(da):
    return DataArray.of(da, signal.hilbert(da.values))
"""
DASPY = """
from scipy import signal
class Section:
    def __init__(self, data, dx, fs):
        self.data, self.fs = data, fs
    def detrending(self):
        self.data = signal.detrend(self.data)
    def cosine_taper(self, p=0.1):
        self.data = self.data * signal.windows.tukey(self.data.shape[1], p)
    def bandpass(self, low, high, corners=4, zerophase=True):
        sos = signal.butter(corners, [low, high], "bandpass", fs=self.fs, output="sos")
        assert zerophase
        data = signal.sosfilt(sos, self.data)[:, ::-1]
        self.data = signal.sosfilt(sos, data)[:, ::-1]
    def downsampling(self, tint, lowpass_filter=True):
        if lowpass_filter:
            sos = signal.cheby2(12, 96, 1 / tint, output="sos")
            self.data = signal.sosfilt(sos, self.data)
        self.data = self.data[:, ::tint]
    def envelope(self):
        self.data = abs(signal.hilbert(self.data))
"""
DAS4WHALES = """
from types import SimpleNamespace
from scipy import signal
def bp_filt(data, fs, fmin, fmax):
    b, a = signal.butter(8, [fmin / (fs / 2), fmax / (fs / 2)], "bp")
    return signal.filtfilt(b, a, data, axis=1)
def butterworth_filter(spec, fs):
    order, corners, kind = spec
    return signal.butter(order, [2 * corner / fs for corner in corners], kind, output="sos")
dsp = SimpleNamespace(bp_filt=bp_filt, butterworth_filter=butterworth_filter)
"""
MODULES = {"dascore": DASCORE, "xdas": XDAS, "daspy": DASPY, "das4whales": DAS4WHALES}


@pytest.fixture(scope="module")
def benchmark() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield {name: importlib.import_module(name) for name in ("peers", "peers_ways")}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of modules, one of which Python takes for an installed package."""
    folder = tmp_path_factory.mktemp("stand_ins")
    for module, text in MODULES.items():
        (folder / f"{module}.py").write_text(text)
    about = folder / "dascore-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: dascore\nVersion: 0.1\n")
    return folder


@pytest.fixture(scope="module")
def array(benchmark: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory):
    """Three channels of 30 s in a file, and the levels that the reference has for them."""
    peers = benchmark["peers"]
    counts = peers.recording(3, 30.0)
    file = tmp_path_factory.mktemp("array") / "counts.i4"
    counts[:, 2000:-2000].copy().tofile(file)
    return benchmark["peers_ways"].Job(file, 3, 200.0), peers.reference(counts)


def outcome(peers: ModuleType, way: str, *seconds: float):
    runs = [
        {**dict.fromkeys(peers.FIGURES, 1.0), "seconds": s, "load_average": 0, "versions": {}}
        for s in seconds
    ]
    return peers.Outcome(way, runs, {})


OURS = ("das-gpu", "das-gpu, NumPy", "das-gpu, dB", "das-gpu, float64", "das-gpu, tiles")
PEERS = (
    *("dascore", "dascore, defaults", "xdas", "xdas, defaults"),
    *("daspy", "daspy, detrended", "daspy, defaults", "das4whales", "das4whales, defaults"),
)


@pytest.mark.parametrize("way", OURS + PEERS)
def test_a_way_that_is_said_to_do_the_same_job_does_it(
    benchmark: dict[str, ModuleType],
    stand_ins: Path,
    array: tuple,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(stand_ins))
    for module in MODULES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    ways = benchmark["peers_ways"].WAYS
    assert tuple(ways) == OURS + PEERS
    asked, truth = array
    try:
        with ways[way].prepare(asked) as prepared:
            first = np.array(prepared.levels(prepared.run()))
            np.testing.assert_array_equal(prepared.levels(prepared.run()), first)
    finally:
        for module in MODULES:
            sys.modules.pop(module, None)
    inside = benchmark["peers"].distance(first, truth)["inside"]["rms"]
    # Without padding, the offset's beginning and end are felt everywhere by the Hilbert transform.
    assert (inside < 0.05) is (ways[way].same_job and way != "daspy")
    assert inside < 0.005 or way in PEERS


@pytest.mark.slow
def test_the_benchmark_runs_and_says_what_it_measured(stand_ins: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, str(BENCH / "peers.py"), "--tiny", "--here", "--calls", "1"]
    command += ["--ways", "das-gpu", "dascore", "xdas"]
    done = subprocess.run(
        [*command, "--json", str(result)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(stand_ins)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    reason = "xdas is not installed in this environment"
    assert found["not_run"] == {"xdas": reason}
    assert f"xdas: not run, {reason}." in done.stdout
    ran = {way["way"]: way for way in found["ways"]}
    assert list(ran) == ["das-gpu", "dascore"]
    assert ran["das-gpu"]["distance_db"]["inside"]["max"] < 0.15
    assert ran["das-gpu"]["versions"].keys() == {"python", "numpy", "scipy", "das-gpu"}
    assert ran["dascore"]["versions"]["dascore"] == "0.1"
    assert all(0 < way["median_above_input_mb"] < way["median_peak_mb"] for way in ran.values())
    assert found["ratios"]["das-gpu"].keys() == {"speed_over_peer", "cpu_over_peer"}
    assert found["machine"]["packages"].keys() == {"das-gpu", "numpy", "scipy"}


def test_a_record_that_is_not_a_whole_number_of_tiles_is_refused(
    benchmark: dict[str, ModuleType], tmp_path: Path
) -> None:
    ways = benchmark["peers_ways"]
    np.zeros((1, 6001), dtype=np.int32).tofile(tmp_path / "counts.i4")
    asked = ways.Job(tmp_path / "counts.i4", 1, 200.0)
    with (
        pytest.raises(ValueError, match=r"not a whole number of tiles"),
        ways.das_gpu(asked, tile_s=15.0, dtype="float32", linear=True),
    ):
        pass


def test_the_samples_are_read_as_they_were_written(
    benchmark: dict[str, ModuleType], tmp_path: Path
) -> None:
    ways = benchmark["peers_ways"]
    counts = np.arange(123 * 40, dtype=np.int32).reshape(123, 40)
    counts.tofile(tmp_path / "counts.i4")
    asked = ways.Job(tmp_path / "counts.i4", 123, 200.0)
    np.testing.assert_array_equal(asked.as_float(), counts)
    assert asked.times()[-1] - asked.times()[0] == np.timedelta64(195, "ms")


def test_the_reference_is_the_chain_over_the_whole_recording(
    benchmark: dict[str, ModuleType],
) -> None:
    peers = benchmark["peers"]
    counts = peers.recording(2, 20.0)
    sos = signal.butter(8, [14, 35], "bandpass", fs=200, output="sos")
    envelope = np.abs(signal.hilbert(signal.sosfiltfilt(sos, counts.astype(float))))
    expected = 20 * np.log10(envelope[:, 2000:6000:2] / 1e-6)
    np.testing.assert_allclose(peers.reference(counts), expected, atol=1e-6)


def test_distances_are_taken_inside_and_at_the_edges_where_there_is_signal(
    benchmark: dict[str, ModuleType],
) -> None:
    peers = benchmark["peers"]
    truth = np.full((2, 2000), 100.0)
    truth[1] = 39.0  # 61 dB under the maximum: not compared
    levels = truth + 7.0 * (truth < 40)
    levels[0, 499] += 3.0
    levels[0, 500] -= 4.0
    found = peers.distance(levels.ravel(), truth)
    assert found == {
        "inside": {"rms": pytest.approx(4 / 1000**0.5, abs=1e-6), "max": 4.0},
        "edges": {"rms": pytest.approx(3 / 1000**0.5, abs=1e-6), "max": 3.0},
    }
    with pytest.raises(peers.UnavailableError, match="gave 3999 levels where 4000 are expected"):
        peers.distance(levels.ravel()[1:], truth)


def test_the_bar_is_over_the_fastest_peer_that_does_the_same_job(
    benchmark: dict[str, ModuleType],
) -> None:
    peers = benchmark["peers"]
    made = [
        outcome(peers, "das-gpu", 0.1, 9.0, 0.1),
        outcome(peers, "das-gpu, tiles", 0.2),
        outcome(peers, "dascore", 0.7, 0.5, 0.6),
        outcome(peers, "daspy", 0.8),
        outcome(peers, "xdas, defaults", 0.3),
    ]
    cpu = {"cpu_over_peer": 1.0, "cpu_over_default": 1.0}
    assert peers.ratios(made) == {
        "das-gpu": {"speed_over_peer": 6.0, "speed_over_default": 3.0, **cpu},
        "das-gpu, tiles": {"speed_over_peer": 3.0, "speed_over_default": 1.5, **cpu},
    }
    assert peers.ratios(made[2:]) == {}
    assert peers.ratios(made[:2]) == {}


def test_speed_is_the_arrays_samples_over_the_median(benchmark: dict[str, ModuleType]) -> None:
    found = outcome(benchmark["peers"], "das-gpu", 0.2, 0.1, 9.0).as_json(9_000_000)
    assert (found["median_seconds"], found["msamples_per_s"]) == (0.2, 45.0)
    assert [run["seconds"] for run in found["runs"]] == [0.2, 0.1, 9.0]


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_is_named_with_the_reason_and_no_address(
    benchmark: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = benchmark["peers"]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        peers.UnavailableError,
        match=r"xdas==\S+ cannot be installed on Python 3\.\d+: .*No matching distribution",
    ):
        peers.environment("xdas", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_failed_command_says_is_passed_on_without_addresses(
    benchmark: dict[str, ModuleType],
) -> None:
    peers = benchmark["peers"]
    says = "raise OSError('no answer from https://me:secret@registry.example/simple at all')"
    with pytest.raises(peers.UnavailableError) as caught:
        peers._run([sys.executable, "-c", says], 60)
    assert str(caught.value) == "OSError: no answer from (address) at all"
