"""Faults for the kernels from the ring to the analytic signal."""

from __future__ import annotations

from tests.gpu.mutant import BARRIER, LOOP_BARRIER, WARP_BARRIER, replaced, without

FILTERING = "tests/gpu/test_filtering_kernels.py"


def _run(*names: str) -> tuple[str, ...]:
    return tuple(f"{FILTERING}::test_{name}" for name in names)


_WINDOWS = _run("gather_gives_the_windows_of_the_host_backend")
_LIVING = _run("channels_that_are_constant_or_not_finite_do_not_live")
_MEDIAN = _run("median_is_numpys_to_the_bit")
_RESPONSE = _run("response_weighs_and_folds")
_SECTIONS = _run("sections_forwards_and_backwards_as_in_scipy")


_GATHER = (
    replaced(
        "gather: constant channels live",
        "gather.cu",
        "return seen.low < seen.high &&",
        "return seen.low <= seen.high &&",
        _LIVING,
    ),
    without(
        "gather: reflections not counted downwards",
        "gather.cu",
        "    if (i < turns * period) turns -= 1;\n",
        _WINDOWS,
    ),
    without(
        "gather: even reflection",
        "gather.cu",
        "    if (rest > n - 1) value = 2.0 * last - value;\n",
        _WINDOWS,
    ),
    without(
        "gather: one usable sample has a period of nothing",
        "gather.cu",
        "    if (n == 1) return first;\n",
        _WINDOWS,
    ),
    replaced(
        "gather: the line reaches its end a sample late",
        "gather.cu",
        "/ (double)(length - 1)};",
        "/ (double)length};",
        _WINDOWS,
    ),
    without(
        "gather: the line's slope stays",
        "gather.cu",
        "(REAL)((value - line.origin) - line.slope * (double)p)",
        _WINDOWS,
        " - line.slope * (double)p",
    ),
    replaced(
        "gather: rounded before the line is off",
        "gather.cu",
        "(REAL)((value - line.origin) - line.slope * (double)p)",
        "(REAL)value - (REAL)(line.origin + line.slope * (double)p)",
        _run("gather_rounds_once_after_the_line_is_off"),
    ),
    without(
        "gather: no barrier after the trace is found",
        "gather.cu",
        f"{BARRIER}\n    const Window window",
        _WINDOWS,
        BARRIER,
    ),
    replaced(
        "gather: samples before the usable ones",
        "gather.cu",
        "const long long begin = column.start > v0 ? column.start : v0;",
        "const long long begin = column.start > 0 ? column.start : 0;",
        _WINDOWS,
    ),
    replaced(
        "gather: samples after the usable ones",
        "gather.cu",
        "const long long end = stop < v1 ? stop : v1;",
        "const long long end = stop < length ? stop : length;",
        _WINDOWS,
    ),
    without(
        "gather: aligned warps write what is not theirs",
        "gather.cu",
        "if (p >= begin && p < end) values[p]",
        _WINDOWS,
        "p >= begin && ",
    ),
    replaced(
        "gather: rows that do not live keep their samples",
        "gather.cu",
        "if (!is_live(seen))\n",
        "if (false)\n",
        _LIVING,
    ),
    replaced(
        "gather: a column's last sample and one more",
        "gather.cu",
        "while (p >= column.start + column.samples)",
        "while (p > column.start + column.samples)",
        _WINDOWS,
    ),
    replaced(
        "gather: a tile is not turned",
        "gather.cu",
        "out[(row0 + i) * length + p0 + x] = tile[x][i];",
        "out[(row0 + i) * length + p0 + x] = tile[i][x];",
        _WINDOWS,
    ),
    without(
        "gather: no barrier before a tile is written",
        "gather.cu",
        f"tile[i][x] = (REAL)0;{LOOP_BARRIER}",
        _WINDOWS,
        LOOP_BARRIER,
    ),
    without(
        "gather: no barrier before a tile is filled again",
        "gather.cu",
        f"= tile[x][i];{LOOP_BARRIER}",
        _WINDOWS,
        LOOP_BARRIER,
    ),
    replaced(
        "gather: a tile's last row is a channel too many",
        "gather.cu",
        "if (row0 + i < channels && p0 + x < length)",
        "if (row0 + i <= channels && p0 + x < length)",
        _WINDOWS,
    ),
    replaced(
        "gather: what one row of threads saw is forgotten",
        "gather.cu",
        "for (int i = 1; i < TILE_ROWS; ++i) {",
        "for (int i = 2; i < TILE_ROWS; ++i) {",
        _LIVING,
    ),
)

_MEDIAN_ROWS = (
    replaced(
        "median_rows: the upper middle for the lower",
        "median_rows.cu",
        "(unsigned int)((count - 1) / 2)",
        "(unsigned int)(count / 2)",
        _MEDIAN,
    ),
    replaced(
        "median_rows: the next value one too late",
        "median_rows.cu",
        "rank + 1 >= equal",
        "rank + 1 > equal",
        _MEDIAN,
    ),
    replaced(
        "median_rows: NaN is a number",
        "median_rows.cu",
        "if (is_nan_key<SAMPLE>(high)) {",
        "if (false) {",
        _MEDIAN,
    ),
    replaced(
        "median_rows: samples before the usable ones",
        "median_rows.cu",
        "core0 > trace.v0 ? core0 : trace.v0",
        "core0",
        _run("median_is_that_of_the_usable_part"),
    ),
    replaced(
        "median_rows: a digit has always 8 bits",
        "median_rows.cu",
        "open < DIGIT_BITS ? open : DIGIT_BITS",
        "DIGIT_BITS",
        _MEDIAN,
    ),
    without(
        "median_rows: no barrier after the reset",
        "median_rows.cu",
        f"histogram[thread] = 0;{LOOP_BARRIER}",
        _MEDIAN,
        LOOP_BARRIER,
    ),
    without(
        "median_rows: no barrier after counting",
        "median_rows.cu",
        f"begin, end, tally);{LOOP_BARRIER}",
        _MEDIAN,
        LOOP_BARRIER,
    ),
    without(
        "median_rows: no barrier after the digit is found",
        "median_rows.cu",
        f"{LOOP_BARRIER}\n        found |=",
        _MEDIAN,
        LOOP_BARRIER,
    ),
    without(
        "median_rows: no barrier before the next digit",
        "median_rows.cu",
        f"open = shift;{LOOP_BARRIER}",
        _run("no_two_threads_race[median channel]"),
        LOOP_BARRIER,
    ),
)

_SPECTRAL_RESPONSE = (
    without(
        "spectral_response: bins before the band",
        "spectral_response.cu",
        "        if (bin < first) continue;\n",
        _RESPONSE,
    ),
    replaced(
        "spectral_response: no fold",
        "spectral_response.cu",
        "bin < last; bin += kept",
        "bin < last && bin < kept; bin += kept",
        _RESPONSE,
    ),
    replaced(
        "spectral_response: outputs before the first",
        "spectral_response.cu",
        "if (j < j0 || j >= j1) return;",
        "if (j >= j1) return;",
        _RESPONSE,
    ),
    replaced(
        "spectral_response: a row too many",
        "spectral_response.cu",
        "if (row0 + i < rows) folded",
        "if (row0 + i <= rows) folded",
        _RESPONSE,
    ),
    replaced(
        "spectral_response: the conjugate",
        "spectral_response.cu",
        "sums[i].y += weight * value.y;",
        "sums[i].y -= weight * value.y;",
        _RESPONSE,
    ),
)

_SOSFILTFILT = (
    replaced(
        "sosfiltfilt: extended about the sample after the last",
        "sosfiltfilt.cu",
        "values[2 * (length - 1) - i]",
        "values[2 * length - 1 - i]",
        _SECTIONS,
    ),
    without(
        "sosfiltfilt: back from where the way there ended",
        "sosfiltfilt.cu",
        "    settle(cascade, state, value);\n    // Tiles",
        _SECTIONS,
        "    settle(cascade, state, value);\n",
    ),
    without(
        "sosfiltfilt: a section without its second state",
        "sosfiltfilt.cu",
        "section.b1 * value - section.a1 * result + state.second[s];",
        _SECTIONS,
        " + state.second[s]",
    ),
    without(
        "sosfiltfilt: every sample is kept",
        "sosfiltfilt.cu",
        " && sample % step == 0",
        _SECTIONS,
    ),
    without(
        "sosfiltfilt: lanes without a row read what nothing wrote",
        "sosfiltfilt.cu",
        "    for (int row = rows_here; row < WARP; ++row) tile[row][lane] = 0.0;\n",
        _SECTIONS,
    ),
    without(
        "sosfiltfilt: no barrier after a tile is read",
        "sosfiltfilt.cu",
        f"t0 + lane - padding);{WARP_BARRIER}",
        _SECTIONS,
        WARP_BARRIER,
    ),
    without(
        "sosfiltfilt: no barrier before a tile is read again",
        "sosfiltfilt.cu",
        f"= value;\n        }}{WARP_BARRIER}",
        _SECTIONS,
        WARP_BARRIER,
    ),
    without(
        "sosfiltfilt: no barrier before a tile is written",
        "sosfiltfilt.cu",
        f"tile[lane][i] = filtered(cascade, state, tile[lane][i]);{WARP_BARRIER}",
        _SECTIONS,
        WARP_BARRIER,
    ),
    without(
        "sosfiltfilt: no barrier after a tile is written",
        "sosfiltfilt.cu",
        f"(REAL)tile[row][lane];{WARP_BARRIER}",
        _SECTIONS,
        WARP_BARRIER,
    ),
)

FILTERING_KERNELS = (
    *_GATHER, *_MEDIAN_ROWS, *_SPECTRAL_RESPONSE, *_SOSFILTFILT,
)  # fmt: skip
