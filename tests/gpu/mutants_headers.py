"""Faults for the headers that the kernels share."""

from __future__ import annotations

from tests.gpu.mutant import BARRIER, replaced, without

FILTERING = "tests/gpu/test_filtering_kernels.py"
IMAGING = "tests/gpu/test_imaging_kernels.py"
GAPS = "tests/gpu/test_edges.py"


def _run(*names: str) -> tuple[str, ...]:
    return tuple(f"{IMAGING}::test_{name}" for name in names)


_LIVING = (f"{FILTERING}::test_channels_that_are_constant_or_not_finite_do_not_live",)
_WINDOWS = (f"{FILTERING}::test_gather_gives_the_windows_of_the_host_backend",)
_ORDER = _run("results_do_not_depend_on_the_order_of_threads_and_blocks[float32]")
_RACE = _run("threads_do_not_race[float32]")
_PICKED = _run("every_kth_live_channel_is_picked")
_COMMON = _run("the_common_mode_is_the_exact_median_of_both_parts")
_SAMPLES = _run("every_core_sample_has_its_own_median")
_PERCENTILES = _run("percentiles_are_the_cpu_backends")
_FEW = _run("percentiles_of_few_values")
_FENCED = (f"{GAPS}::test_blocks_publish_their_counts_before_they_take_a_ticket",)

_COMMON_HEADER = (
    without(
        "key: a negative NaN is not the greatest",
        "common.cuh",
        "    if (magnitude > 0x7f800000u) return 0xffffffffu;\n",
        (f"{GAPS}::test_the_median_of_a_negative_nan_is_nan",),
    ),
    without(
        "key: -0 is less than +0 (float)",
        "common.cuh",
        "    if (magnitude == 0u) return 0x80000000u;\n",
        _LIVING,
    ),
    without(
        "key: -0 is less than +0 (double)",
        "common.cuh",
        "    if (magnitude == 0ull) return 0x8000000000000000ull;\n",
        tuple(f"{test}[float64-channel]" for test in _LIVING),
    ),
    replaced(
        "key: negative numbers in reverse",
        "common.cuh",
        "return bits >> 31 ? ~bits : bits | 0x80000000u;",
        "return bits >> 31 ? bits ^ 0x80000000u : bits | 0x80000000u;",
        _SAMPLES,
    ),
    replaced(
        "key: +inf is finite",
        "common.cuh",
        "return key > 0x007fffffu && key < 0xff800000u;",
        "return key > 0x007fffffu && key <= 0xff800000u;",
        _LIVING,
    ),
    replaced(
        "key: -inf is finite",
        "common.cuh",
        "return key > 0x000fffffffffffffull && key < 0xfff0000000000000ull;",
        "return key >= 0x000fffffffffffffull && key < 0xfff0000000000000ull;",
        tuple(f"{test}[float64-channel]" for test in _LIVING),
    ),
    replaced(
        "warp_all: half a warp",
        "common.cuh",
        "for (int lane = WARP / 2; lane > 0; lane /= 2)",
        "for (int lane = WARP / 4; lane > 0; lane /= 2)",
        _COMMON,
    ),
    replaced(
        "warp_running_sum: lanes count themselves",
        "common.cuh",
        "if (lane >= distance) value += before;",
        "value += before;",
        _PICKED,
    ),
    without(
        "block_all: no barrier before the sharing",
        "common.cuh",
        f"value = warp_all(value, combine);{BARRIER}",
        _LIVING,
        BARRIER,
        argument="Every use comes first in its kernel or after another block_all, which ends with "
        "a barrier; nothing else writes where it shares.",
    ),
    without(
        "block_all: no barrier between writing and reading",
        "common.cuh",
        f"scratch[thread / WARP] = value;{BARRIER}",
        _LIVING,
        BARRIER,
    ),
)

_RING_HEADER = (
    replaced(
        "column_at: a column's first sample in the one before",
        "ring.cuh",
        "if (columns[3 * middle] <= p) low = middle;",
        "if (columns[3 * middle] < p) low = middle;",
        _WINDOWS,
    ),
    replaced(
        "trace_of: a span's first channel in the one before",
        "ring.cuh",
        "if (spans[6 * middle] <= k) low = middle;",
        "if (spans[6 * middle] < k) low = middle;",
        _WINDOWS,
    ),
    replaced(
        "element: not from the column's start",
        "ring.cuh",
        "+ (p - column.start) * trace.stride;",
        "+ p * trace.stride;",
        _WINDOWS,
    ),
    replaced(
        "trace_of: channel from the archive's start, not the block's",
        "ring.cuh",
        "span[4], k - span[4],",
        "span[4], k,",
        _WINDOWS,
    ),
    replaced(
        "trace_of: a block as wide as its end's number",
        "ring.cuh",
        "span[5] - span[4]};",
        "span[5]};",
        _WINDOWS,
    ),
    without(
        "stage_columns: no barrier before the next columns",
        "ring.cuh",
        f": STAGED_COLUMNS;{BARRIER}",
        _WINDOWS,
        BARRIER,
    ),
    without(
        "stage_columns: no barrier after staging",
        "ring.cuh",
        f"staged[i] = columns[3 * first + i];{BARRIER}",
        _WINDOWS,
        BARRIER,
    ),
    replaced(
        "stage_columns: the first columns again",
        "ring.cuh",
        "staged[i] = columns[3 * first + i];",
        "staged[i] = columns[i];",
        _WINDOWS,
    ),
)

_LEVELS_HEADER = (
    without(
        "last_to_finish: no fence before the ticket",
        "levels.cuh",
        f"    __threadfence();{BARRIER}\n    if (threadIdx.x == 0) room.last",
        _FENCED,
        "    __threadfence();",
    ),
    without(
        "last_to_finish: no barrier before the ticket",
        "levels.cuh",
        f"__threadfence();{BARRIER}\n    if (threadIdx.x == 0) room.last",
        _FENCED,
        BARRIER,
    ),
    without(
        "last_to_finish: no barrier after the ticket",
        "levels.cuh",
        f"== (unsigned int)blocks;{BARRIER}",
        _RACE,
        BARRIER,
    ),
    without(
        "last_to_finish: no fence after the ticket",
        "levels.cuh",
        "    if (room.last) __threadfence();\n",
        _FENCED,
    ),
    replaced(
        "last_to_finish: the last but one",
        "levels.cuh",
        "atomicAdd(ticket, 1u) + 1 ==",
        "atomicAdd(ticket, 1u) + 2 ==",
        _PERCENTILES,
    ),
    without(
        "find_bin: no barrier before the warps' sums are read",
        "levels.cuh",
        f"room.of_warp[own] = total;{BARRIER}",
        _ORDER,
        BARRIER,
    ),
    without(
        "find_bin: no barrier before the bin is read",
        "levels.cuh",
        f"Sum<unsigned int>());\n        }}\n    }}{BARRIER}",
        _ORDER,
        BARRIER,
    ),
    without(
        "find_bin: no barrier before the next statistic",
        "levels.cuh",
        f"rest = room.rest;{BARRIER}",
        _ORDER,
        BARRIER,
        argument="The next call writes what was read only after a barrier of its own, and nothing "
        "else is written there; it makes the function safe for callers that do.",
    ),
    replaced(
        "find_bin: the bin before",
        "levels.cuh",
        "below <= rank && rank < below + mine",
        "below < rank && rank <= below + mine",
        _PERCENTILES,
    ),
    without(
        "rank_of: both statistics of a percentile are one",
        "levels.cuh",
        "(long long)place + number % 2;",
        _FEW,
        " + number % 2",
    ),
    replaced(
        "rank_of: a rank beyond the last element",
        "levels.cuh",
        "return rank < n ? rank : n - 1;",
        "return rank;",
        _FEW,
        argument="No bin holds such a rank, so that the statistic before it stands, which is the "
        "last element, and nothing of the other is mixed in: the percentile lies on an element.",
    ),
    replaced(
        "code_of: no lowest code",
        "levels.cuh",
        "fmin(fmax(scaled, -half), half - 1)",
        "fmin(scaled, half - 1)",
        _PERCENTILES,
    ),
    without(
        "db_of: a code's lower edge for its middle",
        "levels.cuh",
        "(CODE_BITS - 1))) + 0.5)",
        (f"{GAPS}::test_percentiles_are_as_exact_as_their_codes",),
        " + 0.5",
    ),
    replaced(
        "narrow: every statistic looks in the first table",
        "levels.cuh",
        "known ? shared_table(before, number) : 0;",
        "0;",
        _PERCENTILES,
    ),
    without(
        "settle: no floor",
        "levels.cuh",
        "            floor_db = lowest;\n",
        _run("zeros_are_lifted_to_200_db_below_the_maximum"),
    ),
    replaced(
        "settle: percentiles below the lowest level",
        "levels.cuh",
        "fmin(fmax(below, low), high)",
        "fmin(below, high)",
        _PERCENTILES,
    ),
    without(
        "settle: only zeros have no level",
        "levels.cuh",
        "            if (!is_finite_key<REAL>(greatest)) highest = (REAL)FLOOR_DB;\n",
        _run("other_scales_are_the_cpu_backends_and_need_no_further_launch"),
    ),
)

SHARED_KERNELS = (*_COMMON_HEADER, *_RING_HEADER, *_LEVELS_HEADER)
