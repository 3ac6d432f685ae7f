/* Where the samples of a window lie in the ring on the device.
 *
 * The ring holds one slot for every column (stretch of time) of stored chunks, with the column's
 * kept channels in it. Two tables of 64-bit integers describe a window:
 *
 *   columns (n_columns, 3)  first sample relative to the window's start (it may be negative),
 *                           samples, element offset of the slot. Ascending and adjoining; together
 *                           they cover every usable sample.
 *   spans (n_spans, 6)      k0, k1, v0, v1, b0, b1: channels [k0, k1) have the usable samples
 *                           [v0, v1) of the window (none where v1 <= v0) and were stored in the
 *                           block of channels [b0, b1). Ascending, covering every channel.
 *
 * Sample p of channel k, in a column of n samples that starts at s:
 *   channel-major    slot + k * n + (p - s)
 *   TIME_MAJOR       slot + b0 * n + (k - b0) + (p - s) * (b1 - b0)
 */
#pragma once

#include "common.cuh"

struct Column {
    long long start;
    long long samples;
    long long slot;
};

/* One channel's samples: [v0, v1) of the window, `stride` elements apart within a slot. */
struct Trace {
    long long v0;
    long long v1;
    long long before;  /* channels that lie before the trace's block (or the trace itself) */
    long long place;   /* elements between the block's start and the trace's first sample */
    long long stride;
};

__device__ __forceinline__ Column column_number(const long long* columns, int number)
{
    return {columns[3 * number], columns[3 * number + 1], columns[3 * number + 2]};
}

#define STAGED_COLUMNS 32

/* Copies the columns from `first` on, at most 32 of them, to `staged`, shared memory for 96 values,
 * so that a block reads the table once and not once a warp. Returns how many they are. Begins and
 * ends with a barrier. */
__device__ __forceinline__ int stage_columns(
    const long long* columns, int n_columns, int first, long long* staged)
{
    const int count = n_columns - first < STAGED_COLUMNS ? n_columns - first : STAGED_COLUMNS;
    __syncthreads();
    for (int i = thread_number(); i < 3 * count; i += thread_count())
        staged[i] = columns[3 * first + i];
    __syncthreads();
    return count;
}

/* The column that holds position p of the window, which must be a usable sample. */
__device__ __forceinline__ Column column_at(const long long* columns, int n_columns, long long p)
{
    int low = 0;
    int high = n_columns - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (columns[3 * middle] <= p) low = middle;
        else high = middle - 1;
    }
    return column_number(columns, low);
}

/* The trace of channel k. */
__device__ __forceinline__ Trace trace_of(const long long* spans, int n_spans, long long k)
{
    int low = 0;
    int high = n_spans - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (spans[6 * middle] <= k) low = middle;
        else high = middle - 1;
    }
    const long long* span = spans + 6 * low;
#ifdef TIME_MAJOR
    return {span[2], span[3], span[4], k - span[4], span[5] - span[4]};
#else
    return {span[2], span[3], k, 0, 1};
#endif
}

/* Element of the ring that holds position p, which lies in this column. */
__device__ __forceinline__ long long element(const Column& column, const Trace& trace, long long p)
{
    return column.slot + trace.before * column.samples + trace.place
        + (p - column.start) * trace.stride;
}
