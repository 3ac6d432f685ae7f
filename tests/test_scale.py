"""The model of many workers, and that its figures can still be measured."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCH = Path(__file__).resolve().parents[1] / "bench"
MEASURED = {
    "segment": {"worker_s": 30.0, "stored_mb": 14_000.0, "requests": 1400, "rows": 60},
    "segments": 217.6,
    "driver_ms": 20.0,
    "start_s": 4.0,
}
ROOFLINE = {
    "stages": {"network, 10 GB/s": 23.4, "decoding, 16 cores": 9.5, "kernels": 0.4},
    "assumed": {"fast_network_gb_per_s": 10.0},
}


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield {name: importlib.import_module(name) for name in ("scale", "scale_model")}


@pytest.fixture(scope="module")
def model(bench: dict[str, ModuleType]) -> ModuleType:
    return bench["scale_model"]


numbers = st.floats(0.01, 1000.0)
limits = st.one_of(numbers, st.just(math.inf))


@st.composite
def drawn(draw: st.DrawFn) -> dict[str, Any]:
    cost = {name: draw(numbers) for name in ("worker_s", "stored_mb", "requests", "driver_s")}
    names = ("worker_mb_per_s", "account_mb_per_s", "account_requests_per_s")
    return {
        "cost": cost,
        "limits": {name: draw(limits) for name in names},
        "segments": draw(st.integers(1, 60)) + draw(st.sampled_from([0.0, 0.25, 0.6])),
        "start_s": draw(st.floats(0.0, 100.0)),
    }


def scenario(model: ModuleType, drawn: dict[str, Any]) -> Any:
    cost, limits = model.Cost(**drawn["cost"]), model.Limits(**drawn["limits"])
    return model.Scenario("drawn", cost, limits, drawn["segments"], drawn["start_s"])


@given(drawn=drawn(), workers=st.integers(1, 100))
def test_no_run_is_faster_than_any_limit_allows(
    model: ModuleType, drawn: dict[str, Any], workers: int
) -> None:
    made = scenario(model, drawn)
    busy_s = model.run_s(made, workers) - made.start_s
    for name, rate in made.ceilings(workers).items():
        assert made.segments / busy_s <= rate * (1 + 1e-9), name
    assert busy_s >= made.segment_s() * min(1, made.segments) * (1 - 1e-9), "nor than a segment"


@given(
    drawn=drawn(),
    workers=st.integers(1, 100),
    name=st.sampled_from(["worker_mb_per_s", "account_mb_per_s", "account_requests_per_s"]),
    factor=st.floats(1.0, 100.0),
)
def test_a_wider_limit_never_makes_a_run_longer(
    model: ModuleType, drawn: dict[str, Any], workers: int, name: str, factor: float
) -> None:
    made = scenario(model, drawn)
    wider = replace(made.limits, **{name: factor * getattr(made.limits, name)})
    longest = model.run_s(made, workers) * (1 + 1e-9)
    assert model.run_s(replace(made, limits=wider), workers) <= longest


@given(drawn=drawn())
def test_one_worker_takes_the_time_that_was_measured(
    model: ModuleType, drawn: dict[str, Any]
) -> None:
    made = scenario(model, drawn)
    made = replace(made, cost=replace(made.cost, driver_s=min(made.cost.driver_s, 0.001)))
    expected = made.start_s + made.segments * made.segment_s()
    last = 2 * made.cost.driver_s
    assert expected <= model.run_s(made, 1) * (1 + 1e-9)
    assert model.run_s(made, 1) <= expected + last + 1e-9 * expected
    assert model.point(made, 1).efficiency == pytest.approx(1)


def plain(model: ModuleType, segments: float = 100.0) -> Any:
    """A segment is 10 s of a worker, and nothing else limits."""
    nothing = model.Limits(math.inf, math.inf, math.inf)
    return model.Scenario("plain", model.Cost(10.0, 100.0, 10.0, 1e-6), nothing, segments, 0.0)


def test_workers_without_limits_share_the_segments(model: ModuleType) -> None:
    assert model.run_s(plain(model), 1) == pytest.approx(1000, abs=0.01)
    assert model.run_s(plain(model), 10) == pytest.approx(100, abs=0.01)
    assert model.run_s(plain(model), 30) == pytest.approx(40, abs=0.01), "the last ten by ten"
    assert model.run_s(plain(model), 512) == pytest.approx(10, abs=0.01), "no less than one"
    assert model.run_s(plain(model, 10.5), 10) == pytest.approx(15, abs=0.01)


@pytest.mark.parametrize(
    ("changed", "limit", "hours"),
    [
        ({"account_mb_per_s": 50.0}, "bandwidth of the account", 200 / 3600),
        ({"account_requests_per_s": 4.0}, "requests of the account", 250 / 3600),
        ({"worker_mb_per_s": 1.0}, "network of a worker", 500 / 3600),
    ],
)
def test_the_limit_that_is_named_is_the_one_that_binds(
    model: ModuleType, changed: dict[str, float], limit: str, hours: float
) -> None:
    made = plain(model)
    found = model.point(replace(made, limits=replace(made.limits, **changed)), 20)
    assert found.limit == limit
    assert found.hours == pytest.approx(hours, rel=1e-3)


def test_a_slow_driver_a_slow_start_and_few_segments_are_named_too(model: ModuleType) -> None:
    made = plain(model)
    assert model.point(made, 20).limit == "work of the workers"
    assert model.point(made, 80).limit == "too few segments"
    assert model.point(replace(made, start_s=500.0), 20).limit == "start of the workers"
    slow = replace(made, cost=replace(made.cost, driver_s=5.0))
    found = model.point(slow, 20)
    assert found.limit == "driver"
    assert found.segments_per_hour == pytest.approx(720, rel=0.05)


def test_a_run_ends_when_the_driver_has_entered_the_last_segment(model: ModuleType) -> None:
    made = plain(model, 12)
    slow = replace(made, cost=replace(made.cost, worker_s=1.0, driver_s=10.0))
    assert model.run_s(slow, 4) == pytest.approx(1 + 12 * 10)


def test_the_curve_bends_where_the_account_is_full(model: ModuleType) -> None:
    """A segment of 30 s and 14 GB: 467 MB/s of the 6250 for each worker, 360 at most."""
    unlimited, core, gpu, fast = model.scenarios(MEASURED, ROOFLINE)
    assert 6250 / 360 < model.bend(core).workers <= 6250 / 360 / model.BENT + 1
    assert model.bend(core).limit == "bandwidth of the account"
    assert [each.workers for each in model.curve(core)] == [2**n for n in range(10)]
    assert model.bend(unlimited).limit == "too few segments"
    assert gpu.cost.worker_s == pytest.approx(60 * 9.5 / 1000)
    assert model.bend(fast).workers == 2
    assert "modelled" in gpu.name
    assert "modelled" in fast.name
    same, wider = model.scenarios(MEASURED, None, account_gbit=200.0)
    assert same == unlimited
    assert model.bend(wider).workers > 2 * model.bend(core).workers


def test_tables_and_json_say_the_same(model: ModuleType) -> None:
    found = model.scenarios(MEASURED, ROOFLINE)
    text, made = model.tables(found), model.as_json(found)
    json.dumps(made, allow_nan=False)
    assert made[0]["limits"]["account_mb_per_s"] is None
    for scenario, each in zip(found, made, strict=True):
        assert f"{scenario.name}: a segment is" in text
        assert f"bends at {each['bend']['workers']} workers: {each['bend']['limit']}" in text
        assert len(each["curve"]) == 10


def test_bars_are_met_or_missed(bench: dict[str, ModuleType]) -> None:
    scale = bench["scale"]
    found = {
        "throughput": {"ratio": 1.7},
        "overhead": {"rss_mb": {"1000": 100.0, "10000": 101.0}, "ms_per_segment": 4.0},
        "first_image": {"median_seconds": {"here": 2.0, "cluster": 5.5}},
        "full_size": {"peak_mb": 150.0},
    }
    judged = scale.bars(found)
    assert judged.keys() == scale.BARS.keys()
    missed = {name for name, each in judged.items() if not each["met"]}
    assert missed == {"two_workers_over_one", "first_image_cluster_s"}
    assert judged["rss_10000_over_1000"]["found"] == 1.01
    assert scale.table(judged).count("**missed**") == 2


@pytest.mark.slow
def test_the_measurement_runs_and_says_what_it_found(
    bench: dict[str, ModuleType], tmp_path: Path
) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, str(BENCH / "scale.py"), "--tiny", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert found["bars"].keys() == bench["scale"].BARS.keys()
    assert found["throughput"]["segments"] == found["throughput"]["tiles"] == 4
    assert (found["overhead"]["segments"], found["full_size"]["tiles"]) == (100, 2400)
    assert found["model"]["segments"] == 4
    assert len(found["curves"]) >= 2
    assert "one core each" in done.stdout
    assert found["machine"]["packages"].keys() >= {"das-gpu", "distributed"}
    again = [sys.executable, str(BENCH / "scale_model.py"), "--measured", str(result)]
    shown = subprocess.run(again, capture_output=True, text=True, timeout=60)
    assert shown.stdout.strip() in done.stdout
