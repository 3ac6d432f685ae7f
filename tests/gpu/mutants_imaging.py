"""Faults for the kernels from the analytic signal to the images."""

from __future__ import annotations

from tests.gpu.mutant import BARRIER, LOOP_BARRIER, replaced, without

IMAGING = "tests/gpu/test_imaging_kernels.py"
GAPS = "tests/gpu/test_edges.py"


def _run(*names: str) -> tuple[str, ...]:
    return tuple(f"{IMAGING}::test_{name}" for name in names)


_ORDER = _run("results_do_not_depend_on_the_order_of_threads_and_blocks[float32]")
_RACE = _run("threads_do_not_race[float32]")
_PICKED = _run("every_kth_live_channel_is_picked")
_NARROW = _run("none_is_picked_where_the_living_span_too_little")
_FACTS = _run("facts_count_the_living_and_each_bands_dead")
_RESET = _run("counters_are_reset")
_COMMON = _run("the_common_mode_is_the_exact_median_of_both_parts")
_SAMPLES = _run("every_core_sample_has_its_own_median")
_ENVELOPE = _run("the_envelope_is_the_cpu_backends")
_PERCENTILES = _run("percentiles_are_the_cpu_backends")
_IMAGES = _run("images_are_the_cpu_backends")
_PILLOW = _run("pillows_images_are_identical")
_BLACK = _run("a_band_without_levels_is_black")
_EQUAL = _run("equal_limits_are_black")
_OVERLAP = _run("bands_may_overlap")


_COMMON_MODE = (
    replaced(
        "pick_channels: the last of each k channels",
        "common_mode.cu",
        "if (rank % step == 0) picked",
        "if (rank % step == step - 1) picked",
        _PICKED,
    ),
    replaced(
        "pick_channels: ranks from 1",
        "common_mode.cu",
        "int rank = running - mine;",
        "int rank = running;",
        _PICKED,
    ),
    without(
        "pick_channels: no barrier before the warps' sums are read",
        "common_mode.cu",
        f"= running;{BARRIER}",
        _ORDER,
        BARRIER,
    ),
    replaced(
        "pick_channels: just wide enough is too narrow",
        "common_mode.cu",
        "< aperture_m;",
        "<= aperture_m;",
        _NARROW,
    ),
    replaced(
        "pick_channels: descending distances are narrow",
        "common_mode.cu",
        "fabs(distance_m[last] - distance_m[first])",
        "distance_m[last] - distance_m[first]",
        _NARROW,
    ),
    replaced(
        "pick_channels: spare channels count as dead",
        "common_mode.cu",
        "band < bands && band * band_stride",
        "band * band_stride",
        _FACTS,
    ),
    replaced(
        "pick_channels: a channel is dead in one band only",
        "common_mode.cu",
        "; ++band)\n                atomicAdd",
        "; band = bands)\n                atomicAdd",
        _OVERLAP,
    ),
    without(
        "pick_channels: no barrier before the dead are counted",
        "common_mode.cu",
        f"facts[FACTS + band] = 0;{BARRIER}",
        _ORDER,
        BARRIER,
    ),
    replaced(
        "pick_channels: counts of one table are not reset",
        "common_mode.cu",
        "i < n_counts; i += stride",
        "i < n_counts - 4096; i += stride",
        _RESET,
    ),
    without(
        "pick_channels: tickets are not reset",
        "common_mode.cu",
        "        for (int round = 0; round < 3; ++round) tickets[3 * band + round] = 0;\n",
        _RESET,
    ),
    replaced(
        "pick_channels: the least key starts from 0",
        "common_mode.cu",
        "extremes[2 * band] = ~(Key)0;",
        "extremes[2 * band] = 0;",
        _RESET,
    ),
    without(
        "common_mode: no barrier before the keys are read",
        "common_mode.cu",
        f"ordered_key(values[2 * start + part]);\n        }}\n    }}{BARRIER}",
        _COMMON,
        BARRIER,
    ),
    replaced(
        "common_mode: the upper middle for the lower",
        "common_mode.cu",
        "const int rank = (n - 1) / 2;",
        "const int rank = n / 2;",
        _COMMON,
    ),
    replaced(
        "common_mode: the candidate itself is below it",
        "common_mode.cu",
        "return key < candidate; });",
        "return key <= candidate; });",
        _run("medians_of_any_values"),
    ),
    replaced(
        "common_mode: the search ends with two keys left",
        "common_mode.cu",
        "bit >= 0 && within > 1;",
        "bit >= 0 && within > 2;",
        _COMMON,
    ),
    replaced(
        "common_mode: the upper middle is the lower",
        "common_mode.cu",
        "below + within == rank + 1)",
        "below + within == rank)",
        _COMMON,
    ),
    replaced(
        "common_mode: keys of rows that are not there",
        "common_mode.cu",
        "column[i] = row < n ? keys[place(row, part)] : ~(Key)0;",
        "column[i] = keys[place(row, part)];",
        _SAMPLES,
    ),
    replaced(
        "common_mode: a median of none",
        "common_mode.cu",
        "n > 0 ? warp_median(column, n) : (REAL)0",
        "warp_median(column, n)",
        _run("the_common_mode_is_zero_where_none_is_picked"),
    ),
    replaced(
        "common_mode: samples after the last",
        "common_mode.cu",
        "begin + REALS / 2 < samples ? begin + REALS / 2 : samples;",
        "begin + REALS / 2;",
        _SAMPLES,
    ),
    replaced(
        "common_mode: from the window's start, not the core's",
        "common_mode.cu",
        "picked[row] * row_length + first + sample0",
        "picked[row] * row_length + sample0",
        _SAMPLES,
    ),
)

_ENVELOPE_DB = (
    replaced(
        "envelope_db: dead channels have levels",
        "envelope_db.cu",
        "if (alive[row]) {",
        "if (true) {",
        _run("other_scales_are_the_cpu_backends_and_need_no_further_launch"),
    ),
    replaced(
        "envelope_db: bands lie side by side",
        "envelope_db.cu",
        "channel = (long long)band * band_stride",
        "channel = (long long)band * band_channels",
        _OVERLAP,
    ),
    without(
        "envelope_db: no barrier before counting",
        "envelope_db.cu",
        f"histogram[bin] = 0;{BARRIER}",
        _ORDER,
        BARRIER,
    ),
    without(
        "envelope_db: no barrier after counting",
        "envelope_db.cu",
        f"if (percentiles) {{{LOOP_BARRIER}",
        _RACE,
        LOOP_BARRIER,
    ),
    without(
        "envelope_db: the common mode's imaginary part stays",
        "envelope_db.cu",
        "value.y - centre.y;",
        _ENVELOPE,
        " - centre.y",
    ),
    replaced(
        "envelope_db: a sample after the last",
        "envelope_db.cu",
        "if (sample < samples) {",
        "if (sample <= samples) {",
        _ENVELOPE,
    ),
    replaced(
        "envelope_db: a band's last channels wrap",
        "envelope_db.cu",
        "band_channels - row0 < ROWS ? band_channels - row0 : ROWS;",
        "ROWS;",
        _ENVELOPE,
    ),
    replaced(
        "envelope_db: counters of the first band",
        "envelope_db.cu",
        "counts + (long long)band * (1 +",
        "counts + 0 * (1 +",
        _PERCENTILES,
    ),
)


_LEVELS = (
    without(
        "levels: dead channels count",
        "levels.cu",
        "if (!alive[row] || own_sample < 0",
        _PERCENTILES,
        "!alive[row] || ",
    ),
    replaced(
        "levels: bands lie side by side",
        "levels.cu",
        "live[(long long)band * band_stride",
        "live[(long long)band * band_channels",
        _OVERLAP,
    ),
    without(
        "levels: aligned warps count what is not theirs",
        "levels.cu",
        "own_sample < 0 || own_sample >= samples",
        _PERCENTILES,
        "own_sample < 0 || ",
    ),
    replaced(
        "levels: all statistics share a table",
        "levels.cu",
        "own[number * BINS + (digits & (BINS - 1))]",
        "own[digits & (BINS - 1)]",
        _PERCENTILES,
    ),
    without(
        "levels: a band of the dead is narrowed",
        "levels.cu",
        "    if (n == 0) return;\n",
        _run("a_band_without_a_live_channel_has_no_levels"),
        argument="Nothing is counted in such a band and settle() writes what envelope_db wrote: "
        "digits of no element, which are not looked at. The guard saves the work.",
    ),
    without(
        "levels: no barrier before it is read who lives",
        "levels.cu",
        f"row0 + threadIdx.x];{BARRIER}",
        _RACE,
        BARRIER,
    ),
)

_GREY_RESIZE = (
    without(
        "along_time: no barrier before the next segment",
        "grey_resize.cu",
        f"segment + SEGMENT;{LOOP_BARRIER}",
        _IMAGES,
        LOOP_BARRIER,
    ),
    without(
        "along_time: no barrier after a segment is read",
        "grey_resize.cu",
        f"__syncwarp();\n        }}{LOOP_BARRIER}",
        _IMAGES,
        LOOP_BARRIER,
    ),
    replaced(
        "along_time: dead channels are drawn",
        "grey_resize.cu",
        "(!TIME_FIRST || live[(long long)band * band_stride + row0 + thread])",
        "true",
        _IMAGES,
    ),
    replaced(
        "along_time: bands lie side by side",
        "grey_resize.cu",
        "live[(long long)band * band_stride + row0",
        "live[(long long)band * band_rows + row0",
        _OVERLAP,
    ),
    replaced(
        "along_channels: bands lie side by side",
        "grey_resize.cu",
        "live[(long long)band * band_stride + i]",
        "live[row]",
        _OVERLAP,
    ),
    replaced(
        "along_time: time goes right where it should go down",
        "grey_resize.cu",
        "(time_down ? (long long)out",
        "(!time_down ? (long long)out",
        _PILLOW,
    ),
    without(
        "along_channels: no barrier before the next segment",
        "grey_resize.cu",
        f"segment + DEPTH;{LOOP_BARRIER}",
        _IMAGES,
        LOOP_BARRIER,
    ),
    without(
        "along_channels: no barrier after a segment is read",
        "grey_resize.cu",
        f"held[i - segment][lane] = value;\n        }}{LOOP_BARRIER}",
        _IMAGES,
        LOOP_BARRIER,
    ),
    without(
        "along_channels: no barrier before the turn",
        "grey_resize.cu",
        f"= handed_on(sums[o]);\n#endif\n    }}{BARRIER}",
        _IMAGES,
        BARRIER,
    ),
    replaced(
        "along_channels: a picture is not turned",
        "grey_resize.cu",
        "drawn[lane][i];",
        "drawn[i][lane];",
        _IMAGES,
    ),
    replaced(
        "along_channels: dead channels are drawn",
        "grey_resize.cu",
        "if (alive) value =",
        "value =",
        _PILLOW,
    ),
    replaced(
        "grey: zeros are not lifted to the floor",
        "grey_resize.cu",
        "fmax(db, (REAL)grey.floor_db)",
        "db",
        _IMAGES,
    ),
    replaced(
        "grey: pixels are truncated",
        "grey_resize.cu",
        "(PIXEL)rint(",
        "(PIXEL)(",
        _IMAGES,
    ),
    replaced(
        "grey: fixed-point sums are truncated",
        "grey_resize.cu",
        "#define HALF (1 << (PRECISION_BITS - 1))",
        "#define HALF 0",
        _PILLOW,
    ),
    replaced(
        "grey: sums beyond 8 bits wrap",
        "grey_resize.cu",
        "(Value)(value < 0 ? 0 : value > 255 ? 255 : value)",
        "(Value)value",
        _PILLOW,
    ),
    replaced(
        "grey: equal limits divide by 0",
        "grey_resize.cu",
        "grey.high > grey.low ? grey.highest / (grey.high - grey.low) : 0.0;",
        "grey.highest / (grey.high - grey.low);",
        (f"{GAPS}::test_equal_limits_are_black_even_beside_them",),
    ),
    without(
        "grey: equal limits divide by 0 (Pillow)",
        "grey_resize.cu",
        "    if (!(grey.high > grey.low)) return 0;\n",
        (f"{GAPS}::test_equal_limits_are_black_even_beside_them",),
    ),
)

IMAGING_KERNELS = (
    *_COMMON_MODE, *_ENVELOPE_DB, *_LEVELS, *_GREY_RESIZE,
)  # fmt: skip
