"""How many processors a process may keep busy, by what the system says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from das_gpu import host


def system(root: Path, groups: str, **files: str) -> Path:
    """A system's files; ``__`` stands for a slash and ``_dot_`` for a dot in their names."""
    for name, text in {"proc__self__cgroup": groups, **files}.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_a_container_may_take_less_than_the_machine_has(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/", sys__fs__cgroup__cpu_dot_max="150000 100000")
    assert host._quota(root) == 1.5


def test_a_group_without_a_limit_is_none(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/", sys__fs__cgroup__cpu_dot_max="max 100000")
    assert host._quota(root) == math.inf


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        "0::/a/b",
        sys__fs__cgroup__a__b__cpu_dot_max="400000 100000",
        sys__fs__cgroup__a__cpu_dot_max="200000 100000",
    )
    assert host._quota(root) == 2


@pytest.mark.parametrize(("quota", "expected"), [("300000", 3), ("-1", math.inf)])
def test_the_older_kind_of_groups_is_read_too(tmp_path: Path, quota: str, expected: float) -> None:
    root = system(
        tmp_path,
        "4:memory:/x\n3:cpu,cpuacct:/job",
        **{
            "sys__fs__cgroup__cpu,cpuacct__job__cpu_dot_cfs_quota_us": quota,
            "sys__fs__cgroup__cpu,cpuacct__job__cpu_dot_cfs_period_us": "100000",
        },
    )
    assert host._quota(root) == expected


def test_a_system_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert host._quota(tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.2, 2), (math.inf, 3), (64.0, 3)])
def test_the_budget_is_the_processors_or_the_quota_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, quota: float, expected: int
) -> None:
    monkeypatch.setattr(host, "_quota", lambda: quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 5})
    assert host.processors() == expected
