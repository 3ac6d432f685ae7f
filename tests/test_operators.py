"""docs/operators.md names exit codes, times and places as the code has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from das_gpu.credentials import Credential
from das_gpu.errors import DasGpuError
from das_gpu.keys import QUARANTINE
from das_gpu.lease import TERMS
from das_gpu.lock import LOCK_KEY
from das_gpu.patience import Patience
from das_gpu.run import SEGMENT_MINUTES, STALL_MINUTES

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "operators.md").read_text()


def kinds(kind: type[DasGpuError]) -> Iterator[type[DasGpuError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_the_table_has_every_exit_code_and_no_other() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    raised = {kind.exit_code for kind in kinds(DasGpuError)}
    assert listed == raised | {0, 3, 10, 12}


def test_times_and_places_are_those_of_the_code() -> None:
    said = " ".join(PAGE.split())
    assert f"a lease of {TERMS.length_s} s on the blob `{LOCK_KEY}`" in said
    assert f"renewed every {TERMS.renew_s:g} s" in said
    assert f"`--stall-minutes` ({STALL_MINUTES:g})" in said
    assert f"`--patience` ({Patience().total_s:g} s)" in said
    assert f"`OUT/{QUARANTINE.rstrip('/')}`" in said
    assert f"{SEGMENT_MINUTES:g} minutes" in (DOCS / "science.md").read_text()


def test_credentials_are_looked_for_in_the_order_of_the_page(monkeypatch) -> None:
    names = re.findall(r"^\d\. `(AZURE_\w+)`", PAGE, re.MULTILINE)
    secret = {"AZURE_STORAGE_SAS_TOKEN": "sig=third", "AZURE_STORAGE_ACCOUNT_KEY": "c2Vjb25k"}
    first = "AccountName=ocean;AccountKey=Zmlyc3Q="
    for name in names:
        monkeypatch.setenv(name, secret.get(name, first))
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    found = []
    for name in names:
        found.append(Credential.parse("auto").resolve("ocean").value)
        monkeypatch.delenv(name)
    assert found == ["Zmlyc3Q=", "c2Vjb25k", "sig=third"]
    assert Credential.parse("auto").resolve("ocean").kind == "anonymous"
