"""Whatever ends a run, and whenever: the same command finishes it, and nothing shows.

A run is ended by SIGKILL at every change it makes in its folder, at random moments, in the
driver of a cluster and in its workers; and by power cuts, computed from the order in which
a run forces its files to the disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.archives import random_walk, write_archive
from tests.killing import hooks
from tests.killing.commands import LONGEST_S, Command, running
from tests.killing.hooks import Change, Point
from tests.killing.plans import Deaths, died
from tests.killing.power import Disk, Fate, Tree, write_tree
from tests.killing.remains import (
    broken_vows,
    delivered,
    finished,
    strays,
    torn,
    tree_of,
)
from tests.killing.server import Ended, Forks, read_journal
from tests.outputs import lines

FLAGS = ["--channels", "::1", "--tile-seconds", "3", "--bands", "2", "--median", "channel"]
FLAGS += ["--segment-minutes", "0.1"]
SEGMENTS, TILES = 3, 10
CLUSTER = ["--cluster", "local", "--workers", "2"]
KILLS_IN_A_ROW = 10
EVERY = "DAS_GPU_TEST_EVERY_KILL" in os.environ
"""Every change in turn, which takes half an hour, instead of some of each kind."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 channels, 15 s: 5 rows of 2 tiles, in 3 segments."""
    folder = tmp_path_factory.mktemp("store")
    return write_archive(folder / "a.zarr", random_walk(36, 3000, seed=11), 200.0, (12, 600))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as server:
        yield server


@dataclass(frozen=True)
class Recorded:
    """An undisturbed run: its folder, its points and changes, how long it took."""

    out: Path
    points: list[Point]
    changes: list[Change]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(store: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(forks, extract(store), tmp_path_factory.mktemp("undisturbed"))


def extract(store: Path, *more: str) -> list[str]:
    """The command without its output."""
    return ["extract", str(store), *FLAGS, *more]


def record(forks: Forks, command: list[str], folder: Path) -> Recorded:
    """Run a command to its end in ``folder/out``, noting all that it does in ``folder``."""
    journal = folder.parent / f"{folder.name}.journal"
    ended = forks.run([*command, str(folder / "out")], watched=str(folder), journal=str(journal))
    assert ended.code == 0, ended.said
    points, changes = read_journal(journal)
    assert not [point for point in points if point.op == "missed"]
    return Recorded(folder / "out", points, changes, ended.seconds)


def same_again(forks: Forks, command: list[str], out: Path, whole: Path) -> Ended:
    """The same command finishes what a death left, as if nothing had been."""
    ended = forks.run([*command, str(out)])
    assert ended.code == 0, ended.said
    assert delivered(out) == delivered(whole)
    assert strays(out) == []
    return ended


# --- a death at every change --------------------------------------------------------------


@pytest.mark.slow
def test_a_kill_at_any_change_is_mended_by_the_same_command(
    store: Path, undisturbed: Recorded, forks: Forks, tmp_path: Path
) -> None:
    """Before and after every kind of write, fsync, rename, removal and new folder, and inside
    every kind of write; one of each, unless it is to be `EVERY`."""
    died_at = kinds(undisturbed.points)
    sorts = " ".join(died_at)
    for name in ("images/", "segments/", r"run\.json", r"metadata\.jsonl", r"undelivered\.jsonl"):
        assert f"^rename after .* -> out/{name}" in sorts
    for op in ("create after", "write half", "fsync after"):
        assert all(f"^{op} out/{where}" in sorts for where in ("images/", "segments/", r"\.\~"))

    def die_and_go_on(like: str, number: int) -> bool:
        folder = tmp_path / f"{list(died_at).index(like)}-{number}"
        folder.mkdir()
        out = folder / "out"
        ended = forks.run(
            [*extract(store), str(out)], watched=str(folder), like=like, kill_at=number
        )
        if ended.code == 0:
            return False
        assert ended.code == -signal.SIGKILL, ended.said
        assert torn(out, undisturbed.out) == [], like
        before = finished(out)
        same_again(forks, extract(store), out, undisturbed.out)
        assert before.items() <= finished(out).items(), f"finished work was redone: {like}"
        shutil.rmtree(folder)
        return True

    luck = np.random.default_rng(1)
    deaths = []
    for like, many in died_at.items():
        chosen = luck.choice(many, many if EVERY else 1, replace=False)
        deaths += [(like, int(number) + 1) for number in chosen]
    with ThreadPoolExecutor(2) as pool:
        happened = dict(zip(deaths, pool.map(lambda d: die_and_go_on(*d), deaths), strict=True))
    # Two threads write images: a folder that both want is made by one, or tried by both.
    missed = [like for (like, number), died in happened.items() if not died and number == 1]
    assert [like for like in missed if not re.search("mkdir|logs|state", like)] == []
    assert sum(happened.values()) > 0.9 * len(happened)


def kinds(points: list[Point]) -> dict[str, int]:
    """Regular expressions for all sorts of points, and how many there are of each.

    A temporary file counts as its folder's; those beside run.json cannot be told apart before
    they are renamed.
    """
    found: Counter[str] = Counter()
    for point in points:
        top, slash, _ = point.path.removeprefix("out/").partition("/")
        if slash:
            where = f"{re.escape(point.path[: point.path.index(top)])}{top}/"
        elif point.op == "rename":
            where = f".* -> {re.escape(point.target)}$"
        elif top.startswith(".~"):
            where = re.escape("out/.~")
        else:
            where = f"{re.escape(point.path)} "
        if slash and point.op == "rename":
            where = f".* -> out/{top}/"
        found[f"^{point.op} {point.phase} {where}"] += 1
    return dict(found)


@pytest.mark.slow
def test_fifty_kills_at_random_moments_lose_nothing(
    store: Path, undisturbed: Recorded, forks: Forks, tmp_path: Path
) -> None:
    """Up to ten in a row, before the run is let finish."""
    longest_s = [undisturbed.seconds]

    def torment(number: int) -> int:
        out, luck, kills = tmp_path / str(number), np.random.default_rng(number), 0
        while kills < KILLS_IN_A_ROW:
            after_s = luck.uniform(0.1, 1.0) * longest_s[0]
            ended = forks.run([*extract(store), str(out)], after_s=after_s)
            if ended.code != -signal.SIGKILL:
                assert ended.code == 0, ended.said
                # The machine has less to do than when the first run was timed.
                longest_s[0] *= 0.9
                break
            kills += 1
            assert torn(out, undisturbed.out) == []
        same_again(forks, extract(store), out, undisturbed.out)
        return kills

    kills = runs = 0
    with ThreadPoolExecutor(2) as pool:
        while kills < 50:
            kills += sum(pool.map(torment, (runs, runs + 1)))
            runs += 2
            assert runs < 40, "the kills came too late to disturb anything"


@pytest.mark.slow
@pytest.mark.parametrize("change", ["--overwrite", "mended"])
def test_a_kill_while_a_run_replaces_another_is_mended(
    store: Path, undisturbed: Recorded, forks: Forks, tmp_path: Path, change: str
) -> None:
    """Started over; or tried again because a chunk, missing before, is there now."""
    source, command = lossy(store, tmp_path), extract(store)
    if change == "--overwrite":
        earlier, command = extract(store, "--low", "15"), extract(store, "--overwrite")
    else:
        earlier, command = extract(source), extract(source)
    (tmp_path / "box").mkdir()
    first = tmp_path / "box" / "first"
    assert forks.run([*earlier, str(first)]).code == (0 if change == "--overwrite" else 3)
    if change == "mended":
        shutil.copytree(store, source, dirs_exist_ok=True)

    def begin_again(number: int) -> Path:
        out = tmp_path / "box" / f"{number}" / "out"
        shutil.copytree(first, out)
        return out

    clean = record_again(forks, command, begin_again(0))
    met = set()
    for number in range(1, len(clean.points) + 1, max(1, len(clean.points) // 10)):
        out, died_at = begin_again(number), tmp_path / "died.json"
        ended = forks.run(
            [*command, str(out)],
            watched=str(out.parent),
            kill_at=number,
            died_at=str(died_at),
        )
        assert ended.code == -signal.SIGKILL, ended.said
        met.add(died_at.read_text().split()[0])
        assert broken_vows(vouching(out)) == []
        same_again(forks, command, out, clean.out)
    assert len(met) >= 3, met
    if change == "mended":
        assert len(lines(clean.out / "metadata.jsonl")) == TILES


def lossy(store: Path, folder: Path) -> Path:
    """A copy of the archive that lacks a chunk."""
    source = folder / "lossy.zarr"
    shutil.copytree(store, source)
    (source / "RawData" / "1.2").unlink()
    return source


def vouching(out: Path) -> Tree:
    """The folder without its manifest, which may be an earlier one until the end of a run."""
    return {name: data for name, data in tree_of(out).items() if name != "metadata.jsonl"}


def record_again(forks: Forks, command: list[str], out: Path) -> Recorded:
    recorded = record(forks, command, out.parent)
    assert strays(out) == []
    return recorded


# --- power cuts ---------------------------------------------------------------------------


def test_every_file_is_forced_to_the_disk_before_another_vouches_for_it(
    undisturbed: Recorded,
) -> None:
    """Images and their folders before the segment's file; that before its name, which is then
    forced before anything else is named."""
    changes = undisturbed.changes
    names = {change.target: at for at, change in enumerate(changes) if change.op == "rename"}
    forced = {
        (change.path, at): change.op for at, change in enumerate(changes) if change.op == "fsync"
    }

    def forced_between(path: str, first: int, last: float) -> bool:
        return any(forced_path == path and first < at < last for forced_path, at in forced)

    segments = sorted(name for name in names if name.startswith("out/segments/"))
    assert len(segments) == SEGMENTS
    for segment in segments:
        at = names[segment]
        rows = lines(undisturbed.out / segment.removeprefix("out/"))
        for image in (f"out/{row['file_name']}" for row in rows):
            folder = image.rpartition("/")[0]
            assert forced_between(image, names[image], at), f"{image} before {segment}"
            assert forced_between(folder, names[image], at), f"the name {image} before {segment}"
        assert forced_between(changes[at].path, -1, at), f"{segment} before it has its name"
    for name in (*segments, "out/run.json", "out/metadata.jsonl", "out/undelivered.jsonl"):
        at = names[name]
        later = min((other for other in names.values() if other > at), default=len(changes))
        assert forced_between(changes[at].path, -1, at), f"{name} before it has its name"
        assert forced_between(name.rpartition("/")[0], at, later), f"the name {name}"


FATES: list[tuple[Fate, Fate]] = [
    ("lost", "lost"),
    ("kept", "lost"),
    ("kept", "torn"),
    ("lost", "kept"),
    *[("chance", "chance")] * 4,
]


@pytest.mark.slow
def test_after_a_power_cut_at_any_change_no_file_vouches_for_what_is_not_there(
    undisturbed: Recorded,
) -> None:
    disk, luck = Disk(), np.random.default_rng(3)
    for change in undisturbed.changes:
        disk.apply(change)
        for names, data in FATES:
            tree = below_out(disk.cut(names, data, luck))
            assert broken_vows(tree) == [], f"{names}, {data}: {change.op} {change.path}"
    whole = below_out(disk.cut("lost", "lost", luck))
    assert {name for name in delivered(undisturbed.out) if whole[name]} >= {
        name for name in delivered(undisturbed.out) if (undisturbed.out / name).stat().st_size
    }, "at the end of a run all that it delivered is safe"


def below_out(tree: Tree) -> Tree:
    return {
        path.removeprefix("out/"): data for path, data in tree.items() if path.startswith("out/")
    }


@pytest.mark.slow
def test_a_power_cut_is_mended_by_the_same_command(
    store: Path, undisturbed: Recorded, forks: Forks, tmp_path: Path
) -> None:
    luck = np.random.default_rng(7)
    changes = undisturbed.changes
    moments = sorted(luck.choice(len(changes), 12, replace=False).tolist())
    for moment in moments:
        for number in luck.choice(5, 2, replace=False):
            names, data = FATES[number]
            box = tmp_path / f"{moment}-{number}"
            write_tree(Disk(changes[: moment + 1]).cut(names, data, luck), box)
            same_again(forks, extract(store), box / "out", undisturbed.out)


# --- clusters -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 channels, 72 s: 24 rows of 2 tiles, in 24 segments, without an edge between."""
    folder = tmp_path_factory.mktemp("long")
    return write_archive(folder / "a.zarr", random_walk(36, 14_400, seed=12), 200.0, (12, 600))


@pytest.fixture(scope="module")
def long_undisturbed(
    long_store: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("long_undisturbed") / "out"
    ended = forks.run([*short_segments(long_store), str(out)])
    assert ended.code == 0, ended.said
    return out


def short_segments(store: Path) -> list[str]:
    return [*extract(store)[:-1], "0.05"]


@pytest.mark.slow
def test_workers_that_are_killed_cost_no_tile(
    long_store: Path, long_undisturbed: Path, tmp_path: Path
) -> None:
    """At changes that luck has chosen, and three times at the same one; the run goes on."""
    out, luck = tmp_path / "out", np.random.default_rng(9)
    counts = tuple(luck.integers(60, 100, size=5).cumsum().tolist())
    again = f"rename before .* -> {re.escape(image_of(long_undisturbed, segment=5))}"
    deaths = Deaths(str(out), "worker", counts=counts, at=again, most=3)
    arguments = [*short_segments(long_store), str(out), *CLUSTER]
    with running(arguments, tmp_path, deaths.environment(tmp_path)) as command:
        assert command.end() == 0, command.said
    assert delivered(out) == delivered(long_undisturbed)
    assert strays(out) == []
    at_the_same, elsewhere = [], []
    for point in died(tmp_path):
        (at_the_same if re.search(again, point) else elsewhere).append(point.split()[0])
    assert len(at_the_same) == 3
    assert len(elsewhere) >= 4
    assert len(set(elsewhere)) >= 2, elsewhere


def image_of(out: Path, segment: int) -> str:
    """The last image that a segment makes."""
    name: str = lines(out / "segments" / f"{segment:05d}.jsonl")[-1]["file_name"]
    return name


@pytest.mark.slow
def test_a_segment_that_kills_every_worker_is_quarantined_and_all_others_are_delivered(
    long_store: Path, long_undisturbed: Path, forks: Forks, tmp_path: Path
) -> None:
    """And delivered when it is tried again without what killed them."""
    out = tmp_path / "out"
    image = image_of(long_undisturbed, segment=5)
    deaths = Deaths(str(out), "worker", at=f"rename before .* -> {re.escape(image)}", most=50)
    arguments = [*short_segments(long_store), str(out), *CLUSTER]
    with running(arguments, tmp_path, deaths.environment(tmp_path)) as command:
        assert command.end() == 3, command.said
    assert 4 <= len(died(tmp_path)) <= 12
    lost = lines(out / "undelivered.jsonl")
    assert {(row["segment"], row["status"]) for row in lost} == {(5, "error")}
    marker = json.loads((out / "quarantine" / "00005.json").read_text())
    assert marker["segment"] == 5
    assert "worker" in marker["reason"]
    assert all(row["reason"] for row in lost)
    whole = delivered(long_undisturbed)
    of_others = {name: sha for name, sha in delivered(out).items() if name.startswith("images/")}
    assert of_others.items() <= whole.items()
    assert len(lines(out / "metadata.jsonl")) == len(whole_lines(long_undisturbed)) - len(lost)

    plain = forks.run([*short_segments(long_store), str(out)])
    assert plain.code == 3, "a plain rerun leaves it alone"
    assert (out / "quarantine" / "00005.json").exists()
    same_again(forks, [*short_segments(long_store), "--retry-quarantined"], out, long_undisturbed)


def whole_lines(out: Path) -> list[dict[str, object]]:
    return lines(out / "metadata.jsonl")


@pytest.mark.slow
def test_a_driver_that_is_killed_takes_its_workers_with_it_and_is_replaced_by_the_next(
    long_store: Path, long_undisturbed: Path, tmp_path: Path
) -> None:
    """Three times on one folder: at chosen changes, and at a random moment of the work."""
    out, luck = tmp_path / "out", np.random.default_rng(4)
    arguments = [*short_segments(long_store), str(out), *CLUSTER]
    for number, at in enumerate(["write half segments/", "", "rename after .* -> segments/00015"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        environment = Deaths(str(out), "driver", at=at).environment(folder) if at else None
        already = len(list(out.glob("segments/*.jsonl")))
        with running(arguments, folder, environment) as command:
            if not at:
                wait_for_segments(out, already + 2, command)
                time.sleep(luck.uniform(0, 0.2))
                command.process.kill()
            assert command.end() == -signal.SIGKILL, command.said
        assert torn(out, long_undisturbed) == []
    before = finished(out)
    with running(arguments, tmp_path) as command:
        assert command.end() == 0, command.said
    assert before.items() <= finished(out).items()
    assert delivered(out) == delivered(long_undisturbed)
    assert strays(out) == []


@pytest.mark.slow
def test_a_driver_killed_at_any_change_is_replaced_by_the_next(
    store: Path, undisturbed: Recorded, forks: Forks, tmp_path: Path
) -> None:
    """At each in turn, or at some: until there is none left to die at."""
    for number in range(1, 1000, 1 if EVERY else 60):
        folder = tmp_path / str(number)
        folder.mkdir()
        out = folder / "out"
        home = tmp_path / f"{number}-plan"
        home.mkdir()
        deaths = Deaths(str(folder), "driver", counts=(number,))
        with running(
            [*extract(store), str(out), *CLUSTER], folder, deaths.environment(home)
        ) as command:
            code = command.end()
        if code == 0:
            break
        assert code == -signal.SIGKILL, command.said
        assert torn(out, undisturbed.out) == []
        same_again(forks, extract(store), out, undisturbed.out)
    assert number > 60


@pytest.mark.slow
def test_workers_killed_at_any_change_cost_no_tile(
    store: Path, undisturbed: Recorded, tmp_path: Path
) -> None:
    """One at every 100th change; the first of them at each in turn, or at one.

    A segment makes some 50 changes, so that no segment meets death each time it is begun.
    """
    for first in range(1, 101) if EVERY else [20]:
        folder = tmp_path / str(first)
        folder.mkdir()
        out = folder / "out"
        home = tmp_path / f"{first}-plan"
        home.mkdir()
        deaths = Deaths(str(out), "worker", counts=tuple(range(first, 1000, 100)))
        with running(
            [*extract(store), str(out), *CLUSTER], folder, deaths.environment(home)
        ) as command:
            assert command.end() == 0, command.said
        assert len(died(home)) >= 1
        assert delivered(out) == delivered(undisturbed.out)
        assert strays(out) == []


def wait_for_segments(out: Path, number: int, command: Command) -> None:
    deadline_s = time.monotonic() + LONGEST_S
    while len(list(out.glob("segments/*.jsonl"))) < number:
        assert time.monotonic() < deadline_s
        assert command.process.poll() is None, command.said
        time.sleep(0.005)


# --- the harness itself -------------------------------------------------------------------


PROBE = """
import io, os, sys, pathlib
from tests.killing import hooks
root, seen = pathlib.Path(sys.argv[1]), []
hooks.install(str(root), lambda p: seen.append(f"{p.op} {p.phase} {p.path} {p.target}".strip()))
(root / "a").mkdir()
with (root / "a" / "x").open("xb") as file:
    file.write(b"1234")
    file.flush()
    os.fsync(file.fileno())
(root / "a" / "x").replace(root / "a" / "y")
os.open(root / "lock", os.O_CREAT | os.O_RDWR)
os.truncate(root / "lock", 0)
io.FileIO(root / "past", "w").close()
(root / "a" / "y").unlink()
(root / "a").rmdir()
(root / "a").parent.joinpath("z").exists()
print("\\n".join(seen))
"""


def test_the_hooks_miss_no_change(tmp_path: Path) -> None:
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path)],
        cwd=Path(hooks.__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert probe.stdout.splitlines() == [
        *("mkdir before a", "mkdir after a"),
        *("create before a/x", "create after a/x"),
        *("write before a/x", "write half a/x", "write after a/x"),
        *("fsync before a/x", "fsync after a/x"),
        *("rename before a/x a/y", "rename after a/x a/y"),
        *("create before lock", "create after lock"),
        *("missed os.truncate lock", "missed open past"),
        *("unlink before a/y", "unlink after a/y"),
        *("rmdir before a", "rmdir after a"),
    ], probe.stderr


def test_a_power_cut_takes_what_was_not_forced_to_the_disk() -> None:
    luck = np.random.default_rng(0)
    disk = Disk(
        [
            Change("mkdir", "a"),
            Change("fsync", "."),
            Change("create", "a/t"),
            Change("data", "a/t", content=b"1234"),
            Change("rename", "a/t", "a/x"),
        ]
    )
    assert disk.cut("lost", "lost", luck) == {"a": None}
    assert disk.cut("kept", "lost", luck) == {"a": None, "a/x": b""}
    assert disk.cut("kept", "torn", luck) == {"a": None, "a/x": b"12"}
    assert disk.cut("kept", "kept", luck) == {"a": None, "a/x": b"1234"}
    disk.apply(Change("fsync", "a/x", content=b"1234"))
    assert disk.cut("lost", "lost", luck) == {"a": None}
    assert disk.cut("kept", "torn", luck) == {"a": None, "a/x": b"1234"}
    disk.apply(Change("fsync", "a"))
    assert disk.cut("lost", "lost", luck) == {"a": None, "a/x": b"1234"}
    disk.apply(Change("unlink", "a/x"))
    assert disk.cut("lost", "lost", luck) == {"a": None, "a/x": b"1234"}
    assert disk.cut("kept", "lost", luck) == {"a": None}
