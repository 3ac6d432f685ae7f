"""Faults can be put in where `tests.gpu.mutants` says, and it tells the seen from the unseen."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gpu import mutants
from tests.gpu.harness.require import need_compiler
from tests.gpu.mutant import Mutant

ALL = mutants.all_mutants(mutants.REPOSITORY)
INCLUDE = '#include "common.cuh"'
ORDER = [mutant for mutant in ALL if mutant.begin is not None]


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_every_fault_has_one_place(mutant: Mutant) -> None:
    text = (mutants.REPOSITORY / mutant.file).read_text()
    assert mutant.applied(text) != text


def test_a_text_that_is_not_there_once_is_refused() -> None:
    mutant = Mutant("some", "some.cu", "ab", "", ())
    for text in ("a b", "ab ab"):
        with pytest.raises(ValueError, match="times"):
            mutant.applied(text)
    with pytest.raises(ValueError, match="at 1"):
        replace(mutant, begin=1).applied("ab")


def test_names_are_unique() -> None:
    assert max(Counter(mutant.name for mutant in ALL).values()) == 1


def test_every_kernel_file_has_faults() -> None:
    assert len(mutants.KERNELS) >= 25
    files = {path.name for path in (mutants.REPOSITORY / "kernels").glob("*.cu*")}
    assert {Path(mutant.file).name for mutant in mutants.KERNELS} == files


@pytest.mark.slow
def test_every_chosen_test_is_there() -> None:
    for test in {test for mutant in ALL for test in mutant.tests}:
        file, _, name = test.partition("::")
        tree = ast.parse((mutants.REPOSITORY / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name.partition("[")[0] in functions


def test_every_event_and_wait_of_the_backend_is_found() -> None:
    asked = r"\.(?:record|wait_event|synchronize)\(|\.done\b"
    for file in mutants.BACKEND:
        text = (mutants.REPOSITORY / file).read_text()
        found = [mutant for mutant in ORDER if mutant.file == file]
        assert len(found) == len(re.findall(asked, text))
        for mutant in found:
            ast.parse(mutant.applied(text))
    assert len(ORDER) >= 11


def test_new_events_and_waits_are_found() -> None:
    text = (
        "class Ring:\n"
        "    def füllen(self):\n"
        "        for event in self.events:\n"
        "            self.stream.wait_event(\n"
        "                event\n"
        "            )\n"
        "        while not (self.copied.done or self.late):\n"
        "            self.copied.record()\n"
    )
    found = mutants.order_mutants("ring.py", text)
    assert [mutant.name.splitlines()[0] for mutant in found] == [
        "ring.füllen: self.stream.wait_event(",
        "ring.füllen: self.copied.done -> True",
        "ring.füllen: self.copied.record() -> pass",
    ]
    assert "events:\n            pass\n" in found[0].applied(text)
    assert "while not (True or self.late)" in found[1].applied(text)
    assert "            pass\n" in found[2].applied(text)


def test_a_wait_within_an_expression_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match=r"ring\.py:1"):
        mutants.order_mutants("ring.py", "late = stream.wait_event(event) or event")


def test_arguments_belong_to_mutants() -> None:
    assert set(mutants.ORDER_ARGUMENTS) <= {mutant.name for mutant in ORDER}


@pytest.mark.slow
def test_the_script_tells_the_seen_from_the_unseen() -> None:
    need_compiler()
    file, kernel = "tests/gpu/test_filtering_kernels.py", "kernels/spectral_response.cu"
    tests = (f"{file}::test_response_weighs_and_folds[one-float32]",)
    wrong = Mutant("wrong", kernel, "sums[i].y += weight", "sums[i].y -= weight", tests)
    beyond = Mutant("beyond", kernel, "if (row0 + i < rows) {", "if (true) {", tests)
    none = Mutant("none", kernel, INCLUDE, f"{INCLUDE}  ", tests)
    argued = replace(none, name="argued", argument="A blank more.")
    verdicts = mutants.try_all([none, argued, wrong, beyond], jobs=2)
    assert [verdict.mutant.name for verdict in verdicts] == ["wrong", "beyond", "none", "argued"]
    assert [bool(verdict.killed_by) for verdict in verdicts] == [True, True, False, False]
    assert "test_response_weighs_and_folds" in verdicts[0].killed_by
    assert [verdict.unexplained for verdict in verdicts] == [False, False, True, False]


@pytest.mark.slow
def test_a_fault_that_cannot_be_compiled_is_none() -> None:
    need_compiler()
    tests = ("tests/gpu/test_filtering_kernels.py::test_response_weighs_and_folds[one-float32]",)
    broken = Mutant("b", "kernels/spectral_response.cu", INCLUDE, "", tests)
    with pytest.raises(RuntimeError, match="could not be run"):
        mutants.try_all([broken], jobs=1)
