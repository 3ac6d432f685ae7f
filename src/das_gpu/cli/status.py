"""``das-gpu status``: where a run stands."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from das_gpu.cli import console
from das_gpu.cli.access import ACCESS, AccessOptions
from das_gpu.cli.options import OUTPUT, OutputOptions, option
from das_gpu.cli.places import Run

if TYPE_CHECKING:
    from das_gpu.status import Failure, RunStatus
    from das_gpu.store import Access

_SHOWN = 3
"""Reasons that are shown without --failed."""


def status(
    out: Run,
    /,
    *,
    failed: Annotated[
        bool, option(OUTPUT, "Every reason for which tiles were lost, by segment.")
    ] = False,
    reading: AccessOptions | None = None,
    out_credential: Annotated[
        str, option(ACCESS, "The same as --credential, as extract has it for OUT.", metavar="FORM")
    ] = "auto",
    output: OutputOptions | None = None,
) -> int:
    """Show where a run stands: done, running, failed, rate and time left.

    It is read off the run's files: nothing is changed, and a run that is at work is not disturbed.
    --credential is OUT's.
    """
    from das_gpu.status import status as find_out

    found = find_out(out, out_access(reading, out_credential))
    if (output or OutputOptions()).json:
        console.write_json(_facts(found))
        return found.exit_code
    console.write_table(_rows(found, failed), found.exit_code)
    return found.exit_code


def out_access(reading: AccessOptions | None, out_credential: str) -> Access:
    """How OUT is reached, by commands that have no SOURCE.

    Where `extract` has been given the credential of OUT by the environment, that one holds.
    """
    return (reading or AccessOptions()).access(None if out_credential == "auto" else out_credential)


def _rows(found: RunStatus, failed: bool) -> list[tuple[str, str]]:
    begun = f", begun {found.created}" if found.created else ""
    done = sum(found.tiles.values())
    counts = ", ".join(f"{n:,} {name}" for name, n in found.tiles.items())
    return [
        ("run", f"{found.out}{begun}"),
        ("segments", _segments(found)),
        ("tiles", f"{done:,} of {found.total_tiles:,} done{f': {counts}' if counts else ''}"),
        *_work(found),
        *_failures(found, failed),
        ("verdict", _verdict(found)),
    ]


def _segments(found: RunStatus) -> str:
    text = f"{found.done:,} of {found.segments:,} done"
    if found.failed:
        text += f", {found.failed:,} of them with lost tiles"
    if found.quarantined:
        text += f", {len(found.quarantined):,} of these in quarantine"
    return text


def _work(found: RunStatus) -> list[tuple[str, str]]:
    """Who is at work, and at what."""
    if found.holder is None:
        return [("at work", "nobody")]
    rows = [("at work", str(found.holder))]
    state = found.state
    if state is None:
        return rows
    rate = f"{state.done_tiles:,} of {state.total_tiles:,} tiles, {state.tiles_per_s:.1f} tiles/s"
    if state.remaining_s is not None:
        rate += f", {console.duration_text(round(state.remaining_s))} left"
    rows.append(("this time", f"{rate} (at {state.updated})"))
    for one in state.running:
        text = f"segment {one.segment} since {one.since}, {one.tiles:,} tiles, {one.worker}"
        rows.append(("running", text))
    rows.append(("waiting", f"{state.waiting:,} segments"))
    if state.retried:
        named = ", ".join(f"{segment} ({times} x)" for segment, times in state.retried.items())
        rows.append(("tried again", f"segments {named}"))
    return rows


def _failures(found: RunStatus, failed: bool) -> list[tuple[str, str]]:
    """What was lost and why; without ``failed``, the most frequent reasons only."""
    rows = [
        ("quarantine", f"segment {segment}: {reason}")
        for segment, reason in found.quarantined.items()
    ]
    rows += [("lost", _failure(failure)) for failure in found.failures]
    if failed or len(rows) <= _SHOWN:
        return rows
    return [*rows[:_SHOWN], ("", f"and {len(rows) - _SHOWN:,} more: das-gpu status --failed")]


def _failure(failure: Failure) -> str:
    tiles = "1 tile" if failure.tiles == 1 else f"{failure.tiles:,} tiles"
    return f"segment {failure.segment}, {tiles} {failure.status}: {failure.reason}"


def _verdict(found: RunStatus) -> str:
    if found.holder is not None:
        return "At work."
    if found.to_do:
        many = "1 segment" if found.to_do == 1 else f"{found.to_do:,} segments"
        return f"{many} to do: the command that began the run continues it."
    if not found.lost:
        return "Finished."
    text = f"Finished, {found.lost:,} tiles lost: the command that began the run tries these again."
    if found.quarantined:
        text += " Segments in quarantine only with --retry-quarantined."
    return text


def _facts(found: RunStatus) -> dict[str, Any]:
    """The same for machines."""
    return {
        "out": found.out,
        "created": found.created,
        "das_gpu": found.version,
        "segments": {
            "total": found.segments,
            "done": found.done,
            "to_do": found.to_do,
            "failed": found.failed,
            "quarantined": len(found.quarantined),
        },
        "tiles": {"total": found.total_tiles, **found.tiles},
        "quarantined": {str(segment): reason for segment, reason in found.quarantined.items()},
        "failures": [asdict(failure) for failure in found.failures],
        "holder": None if found.holder is None else asdict(found.holder),
        "state": None if found.state is None else found.state.as_json(),
        "exit_code": found.exit_code,
    }
