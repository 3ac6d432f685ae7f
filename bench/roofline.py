"""What a row of tiles asks of a GPU, counted without one, and the times it would take, modelled.

    python bench/roofline.py                      # 7,500 channels, a minute
    python bench/roofline.py --tiny               # small; shows that it runs, no figure
    python bench/roofline.py --markdown FILE      # the table of an earlier run's JSON

Counted: launches, copies and synchronisations, by the tests' strict double of CuPy; global-memory
traffic in 32-byte sectors of each warp's access, by the tests' launcher, which executes the
kernels on a processor; registers and spills, by ``ptxas``. A transform of cuFFT is taken for one
pass: its input read once, its output written once.

Modelled: times. Traffic over the rate at which an H100 copies, copies over PCIe's, the filter's
chain of dependent operations over the clock. No time here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import describe

if TYPE_CHECKING:
    from das_gpu.plan import Plan
    from roofline_counts import Step

HERE = Path(__file__).resolve().parent
PACKAGES = ("das-gpu", "numpy", "scipy", "cupy-cuda13x", "nvidia-cuda-nvrtc")
CHANNELS = 7500
TINY_CHANNELS = 80
TINY = {"tile.seconds": 3, "tile.bands": 4, "image.height": 32, "image.width": 32}
ASSUMED = {
    "hbm_gb_per_s": 3000.0,
    "pcie_gb_per_s": 55.0,
    "clock_ghz": 1.7,
    "fp64_latency_cycles": 8,
    "fp64_issue_cycles": 2,
    "stream_mb_per_s": 30.0,
    "streams": 12,
    "fast_network_gb_per_s": 10.0,
    "decode_core_ms_per_chunk": 11.7,
    "decode_cores": 16,
    "stored_share_of_decoded": 0.5,
}
"""An H100 SXM copies 3.0 TB/s within its memory and, of PCIe 5 x16's 64 GB/s, 55 to it. Dependent
double-precision operations of a GPU with full FP64 rate follow each other after 8 cycles (Jia,
Maggioni, Staiger and Scarpazza, "Dissecting the NVIDIA Volta GPU Architecture via
Microbenchmarking", 2018); one occupies a partition's 16 lanes for 2. Decoding is what `reading.py`
measures for a chunk of 36 MB of Blosc-lz4."""
BARS = {
    "calls": 10,
    "h2d_over_kept_samples": 1.05,
    "d2h_over_results": 1.0,
    "hidden_syncs": 0,
    "traffic_gb": 1.15,
    "spill_bytes": 0,
}
FP64_OPERATIONS_A_SECTION = 6
RECURSION_OPERATIONS = 3
SECTIONS = (8, 16)


def measure(*, tiny: bool) -> dict[str, Any]:
    """Count everything, and model times."""
    from das_gpu.recipe import Recipe
    from roofline_counts import cable_plan, counted_steps
    from roofline_device import fits, small_plan

    continuous = Recipe.from_preset("continuous").with_settings({"median.kind": "channel"})
    notebook = Recipe.from_preset("notebook")
    channels = TINY_CHANNELS if tiny else CHANNELS
    changed = TINY if tiny else {}
    made = cable_plan(continuous.with_settings(changed), channels)
    steps = counted_steps(made, 1 if tiny else 2)
    half = [] if tiny else counted_steps(made, 1)
    found = [_step(step, {} if step.launch is None else fits(step.launch)) for step in steps]
    filters = [
        _filter(name, cable_plan(recipe.with_settings(changed), channels))
        for name, recipe in (
            ("notebook", notebook),
            ("iir", continuous.with_settings({"filter.method": "iir"})),
        )
    ]
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(PACKAGES),
        "assumed": ASSUMED,
        "row": {
            "channels": made.kept_channels,
            "samples": made.tile_samples,
            "window": made.window_span // made.hold_step,
            "bands": made.bands,
            "counted_bands": 1 if tiny else 2,
            "scaling_error": max(
                (abs(a.moved_bytes / b.moved_bytes - 1) for a, b in zip(steps, half, strict=False)),
                default=None,
            ),
        },
        "steps": found,
        "requests": {
            name: _requests(small_plan(recipe), cable_plan(recipe.with_settings(changed), channels))
            for name, recipe in (("continuous", continuous), ("notebook", notebook))
        },
        "filter": filters,
        "stages": _stages(made, found),
    }
    result["bars"] = _bars(result)
    return result


def _step(step: Step, needs: Mapping[str, Any]) -> dict[str, Any]:
    """One step of the row, for a file."""
    return {
        "name": step.name,
        "read_bytes": round(step.read_bytes),
        "written_bytes": round(step.written_bytes),
        "least_bytes": step.least_bytes,
        "blocks": step.blocks,
        "blocks_counted": step.blocks_counted,
        "modelled_ms": 1e3 * step.moved_bytes / (1e9 * ASSUMED["hbm_gb_per_s"]),
        "fits": {arch: fit.as_json() for arch, fit in needs.items()},
    }


def _requests(small: Plan, made: Plan) -> dict[str, Any]:
    """What the double counts on small rows, and the copies of the whole row by formula.

    Raises
    ------
    ValueError
        When the formulas do not give what the double counts.
    """
    from roofline_counts import MIDDLE_ROW
    from roofline_device import d2h_bytes, h2d_bytes, kept_bytes, requested

    row = requested(small)[MIDDLE_ROW]
    if (row.h2d_bytes, row.d2h_bytes) != (h2d_bytes(small, MIDDLE_ROW), d2h_bytes(small)):
        raise ValueError(f"the formulas of the copies do not give what was counted: {row}")
    h2d, d2h = h2d_bytes(made, MIDDLE_ROW), d2h_bytes(made)
    return {
        "launches": row.launches,
        "calls": row.calls,
        "hidden_syncs": row.hidden_syncs,
        "waits": row.waits,
        "allocations": row.allocations,
        "kept_bytes": kept_bytes(made),
        "h2d_bytes": h2d,
        "d2h_bytes": d2h,
        "d2h_over_results": row.d2h_bytes / d2h_bytes(small),
        "h2d_modelled_ms": h2d / ASSUMED["pcie_gb_per_s"] / 1e6,
        "d2h_modelled_ms": d2h / ASSUMED["pcie_gb_per_s"] / 1e6,
    }


def _filter(recipe: str, made: Plan) -> dict[str, Any]:
    """`sosfiltfilt`, whose samples wait for one another: its chain of dependent operations.

    A sample passes the sections one after the other, one dependent multiply-add each; a section's
    own recursion takes three from a sample to the next. Either pass is also bounded by the rate
    at which one warp, alone in its partition, can issue its operations.
    """
    import numpy as np

    from das_gpu.backends import filtering
    from das_gpu.process import design
    from roofline_device import fits

    chain = design(made)
    if chain.sections is None:
        raise ValueError("a recipe that filters with second-order sections is wanted")
    rows, sections = made.kept_channels, len(chain.sections)
    total = chain.length + 2 * chain.padding
    samples = total + (total - chain.padding)
    latency, issue = ASSUMED["fp64_latency_cycles"], ASSUMED["fp64_issue_cycles"]
    cycles = {
        "chain": samples * max(sections, RECURSION_OPERATIONS) * latency,
        "issue": samples * sections * FP64_OPERATIONS_A_SECTION * issue,
    }
    needs = {}
    for count in SECTIONS:
        launch = filtering.sosfiltfilt(
            np.empty((rows, chain.length)),
            np.empty(filtering.sosfiltfilt_scratch(rows, chain.length, chain.padding)),
            np.empty((rows, -(-chain.length // chain.step)), chain.dtype),
            filtering.cascade(np.resize(chain.sections, (count, 6))),
            padding=chain.padding,
            step=chain.step,
        )
        needs[str(count)] = {arch: fit.as_json() for arch, fit in fits(launch).items()}
    return {
        "recipe": recipe,
        "sections": sections,
        "samples": samples,
        "warps": launch.grid[0],
        "cycles": cycles,
        "modelled_ms": max(cycles.values()) / ASSUMED["clock_ghz"] / 1e6,
        "fits": needs,
    }


def _stages(made: Plan, steps: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Modelled milliseconds a row spends in each stage; they overlap, so the longest limits."""
    import numpy as np

    from roofline_counts import MIDDLE_ROW
    from roofline_device import d2h_bytes, h2d_bytes

    chunk_rows, _ = made.chunk_grid(made.segment(0))
    height, width = made.acquisition.chunk_shape
    chunks = len(chunk_rows) * made.tile_span / width
    decoded = chunks * height * width * np.dtype(made.acquisition.dtype).itemsize
    stored = decoded * ASSUMED["stored_share_of_decoded"]
    streams_gb = ASSUMED["streams"] * ASSUMED["stream_mb_per_s"] / 1e3
    copies = (h2d_bytes(made, MIDDLE_ROW), d2h_bytes(made))
    to_device, to_host = (size / ASSUMED["pcie_gb_per_s"] / 1e6 for size in copies)
    return {
        "network, 12 streams of 30 MB/s": stored / streams_gb / 1e6,
        "network, 10 GB/s": stored / ASSUMED["fast_network_gb_per_s"] / 1e6,
        "decoding, 16 cores": chunks
        * ASSUMED["decode_core_ms_per_chunk"]
        / ASSUMED["decode_cores"],
        "copy to the device": to_device,
        "kernels and transforms": sum(step["modelled_ms"] for step in steps),
        "copy to the host": to_host,
    }


def _bars(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Each bar, and the worst that was found."""
    requests = result["requests"].values()
    moved = sum(step["read_bytes"] + step["written_bytes"] for step in result["steps"])
    fits = [step["fits"] for step in result["steps"]]
    fits += [each for filtered in result["filter"] for each in filtered["fits"].values()]
    worst = {
        "calls": max(each["calls"] for each in requests),
        "h2d_over_kept_samples": max(each["h2d_bytes"] / each["kept_bytes"] for each in requests),
        "d2h_over_results": max(each["d2h_over_results"] for each in requests),
        "hidden_syncs": max(each["hidden_syncs"] for each in requests),
        "traffic_gb": moved / 1e9,
        "spill_bytes": max(fit["spill_bytes"] for each in fits for fit in each.values()),
    }
    return {name: {"bar": bar, "found": worst[name]} for name, bar in BARS.items()}


# --- text ---------------------------------------------------------------------------------


def tables(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    return "\n".join([*_steps_table(result), "", *_facts(result), "", *_stages_table(result)])


_STEPS_HEAD = (
    "| step | calls | read MB | written MB | least MB | over the least | modelled ms "
    "| registers | spills | occupancy |"
)


def _steps_table(result: Mapping[str, Any]) -> list[str]:
    lines = [_STEPS_HEAD, "|---|---|---|---|---|---|---|---|---|---|"]
    lines += [_line(step["name"], 1, step, step["fits"]) for step in result["steps"]]
    total = {
        name: sum(step[name] for step in result["steps"])
        for name in ("read_bytes", "written_bytes", "least_bytes", "modelled_ms")
    }
    lines.append(_line("the row", len(result["steps"]), total, {}))
    for each in result["filter"]:
        for count, fits in each["fits"].items():
            own = int(count) == each["sections"]
            name = f"sosfiltfilt, {each['recipe']}, {count} sections"
            time = f"{each['modelled_ms']:.3f}" if own else ""
            lines.append(f"| {name} | 1 | | | | | {time} | {_fit(fits)} |")
    return lines


def _line(name: str, calls: int, step: Mapping[str, Any], fits: Mapping[str, Any]) -> str:
    moved = step["read_bytes"] + step["written_bytes"]
    return (
        f"| {name} | {calls} | {step['read_bytes'] / 1e6:.1f} | {step['written_bytes'] / 1e6:.1f} "
        f"| {step['least_bytes'] / 1e6:.1f} | {moved / step['least_bytes']:.3f} "
        f"| {step['modelled_ms']:.3f} | {_fit(fits)} |"
    )


def _fit(fits: Mapping[str, Any]) -> str:
    """Registers, spills and occupancy, for each architecture."""
    if not fits:
        return "| | "
    registers = ", ".join(str(fit["registers"]) for fit in fits.values())
    spills = ", ".join(str(fit["spill_bytes"]) for fit in fits.values())
    shares = ", ".join(f"{100 * fit['occupancy']:.0f}" for fit in fits.values())
    return f"{registers} | {spills} | {shares} %"


def _facts(result: Mapping[str, Any]) -> list[str]:
    lines = ["| in a row | bar | found |", "|---|---|---|"]
    names = {
        "calls": "kernel launches and transforms",
        "h2d_over_kept_samples": "copied to the device, over the kept samples",
        "d2h_over_results": "copied to the host, over images and records",
        "hidden_syncs": "hidden synchronisations",
        "traffic_gb": "global-memory traffic, GB",
        "spill_bytes": "spilled bytes",
    }
    for name, said in names.items():
        bar = result["bars"][name]
        found = bar["found"]
        text = f"{found:.4f}" if isinstance(found, float) else str(found)
        lines.append(f"| {said} | {bar['bar']:g} | {text} |")
    return lines


def _stages_table(result: Mapping[str, Any]) -> list[str]:
    stages = result["stages"]
    longest = max(stages, key=lambda name: float(stages[name]))
    lines = ["| stage of a row | modelled ms |", "|---|---|"]
    lines += [f"| {name} | {time:.2f} |" for name, time in stages.items()]
    without = {n: t for n, t in stages.items() if not n.startswith("network, 12")}
    fast = max(without, key=lambda name: float(without[name]))
    return [*lines, "", f"The limit: {longest}; over the fast network: {fast}."]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a small row; its figures say nothing")
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--markdown", type=Path, help="print the tables of this result instead")
    options = parser.parse_args()
    if options.markdown is not None:
        print(tables(json.loads(options.markdown.read_text())))
        return 0
    result = measure(tiny=options.tiny)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))
    missed = [name for name, bar in result["bars"].items() if bar["found"] > bar["bar"]]
    if missed:
        print(f"Missed: {', '.join(missed)}.", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    # The launcher and the double belong to the tests of this checkout.
    sys.path.insert(0, str(HERE.parent))
    sys.exit(main())
