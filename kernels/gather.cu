/* gather: a window of every channel, from the ring to the rows the transform (or the filter) reads.
 *
 * Contract
 *   out[r, p] is sample p of the window of channel first_channel + r, less the straight line
 *   through the window's first and last sample (detrend = 1) or less median[r] (detrend = 0 and
 *   median given). What a trace lacks before v0 and after v1 is its odd reflection,
 *       x(v0 - i) = 2 x(v0) - x(v0 + i)  and the same about v1 - 1,
 *   folded as often as needed: two reflections are a shift by the period 2 (v1 - v0 - 1) that adds
 *   twice the difference of the ends. A channel whose usable samples are all equal, not all
 *   finite, or none, is not live: live[r] = 0 and its row is zeros.
 *   A line through the window's own samples takes every constant off, so with detrend = 1 the
 *   median makes no difference and is not read.
 *
 * Macros          SAMPLE, REAL, TIME_MAJOR (defined when slots are stored sample by sample)
 * Memory          ring and tables: see ring.cuh; median (channels) or null; out (channels, length)
 *                 C-contiguous; live (channels)
 * Launch          channel-major: a block of 256 threads a channel.
 *                 TIME_MAJOR: a block of (32, 8) threads for 32 channels; tiles of 32 samples are
 *                 turned in shared memory, so that reads and writes are both coalesced.
 * Shared bytes    static: at most 1.1 KB; TIME_MAJOR at most 12.6 KB
 * Global memory   each usable sample is read once and each value written once, besides the two ends
 *                 of the line, the reflected parts, and the rows of channels that are not live.
 * Arithmetic      the line in double, which holds differences of 32-bit counts exactly; only what
 *                 is left is rounded to REAL. Constancy is judged on exact keys.
 * Reference       limits, gather and detrended in das_gpu/backends/window.py. The odd reflection is
 *                 that of scipy.signal.filtfilt's padding; the tiles are those of M. Harris, "An
 *                 Efficient Matrix Transpose in CUDA C/C++" (2013).
 */
#include "ring.cuh"

#ifndef SAMPLE
#define SAMPLE int
#endif

using Key = KeyOf<SAMPLE>::type;

/* Least and greatest key of the samples seen so far; none yet when low > high. */
struct Seen {
    Key low;
    Key high;
};

__device__ __forceinline__ Seen nothing_seen() { return {(Key)~(Key)0, (Key)0}; }

__device__ __forceinline__ void see(Seen& seen, SAMPLE sample)
{
    const Key key = ordered_key(sample);
    if (key < seen.low) seen.low = key;
    if (key > seen.high) seen.high = key;
}

__device__ __forceinline__ bool is_live(const Seen& seen)
{
    return seen.low < seen.high && is_finite_key<SAMPLE>(seen.low)
        && is_finite_key<SAMPLE>(seen.high);
}

/* A ring, its columns and one trace in it: what is needed to read any position of a window. */
struct Window {
    const SAMPLE* ring;
    const long long* columns;
    int n_columns;
    Trace trace;
};

__device__ __forceinline__ double usable(const Window& window, long long p)
{
    const Column column = column_at(window.columns, window.n_columns, p);
    return (double)window.ring[element(column, window.trace, p)];
}

/* The value at position p, usable or not, of a trace that has usable samples. */
__device__ double extended(const Window& window, long long p)
{
    const long long v0 = window.trace.v0;
    const long long n = window.trace.v1 - v0;
    const long long i = p - v0;
    if (i >= 0 && i < n) return usable(window, p);
    const double first = usable(window, v0);
    if (n == 1) return first;
    const double last = usable(window, v0 + n - 1);
    const long long period = 2 * (n - 1);
    long long turns = i / period;
    if (i < turns * period) turns -= 1;
    const long long rest = i - turns * period;
    double value = usable(window, v0 + (rest > n - 1 ? period - rest : rest));
    if (rest > n - 1) value = 2.0 * last - value;
    return value + 2.0 * (last - first) * (double)turns;
}

/* What is taken off: origin + slope * p. */
struct Line {
    double origin;
    double slope;
};

__device__ __forceinline__ Line line_of(
    const Window& window, int length, int detrend, const double* median, long long row)
{
    if (window.trace.v1 <= window.trace.v0) return {0.0, 0.0};
    if (!detrend) return {median != nullptr ? median[row] : 0.0, 0.0};
    const double first = extended(window, 0);
    // A window of one sample is that sample; its line is flat.
    if (length == 1) return {first, 0.0};
    return {first, (extended(window, length - 1) - first) / (double)(length - 1)};
}

__device__ __forceinline__ REAL taken_off(const Line& line, double value, long long p)
{
    return (REAL)((value - line.origin) - line.slope * (double)p);
}

#ifndef TIME_MAJOR

#define THREADS 256

/* What is kept of the sample at position p, which counts for the channel's being live. */
__device__ __forceinline__ REAL kept(SAMPLE sample, long long p, const Line& line, Seen& seen)
{
    see(seen, sample);
    return taken_off(line, (double)sample, p);
}

extern "C" __global__ void __launch_bounds__(THREADS) gather(
    const SAMPLE* __restrict__ ring, const long long* __restrict__ columns, int n_columns,
    const long long* __restrict__ spans, int n_spans, int first_channel, int channels, int length,
    const double* __restrict__ median, int detrend, REAL* __restrict__ out,
    unsigned char* __restrict__ live)
{
    __shared__ Trace shared_trace;
    __shared__ Line shared_line;
    __shared__ Key scratch[WARP];
    __shared__ long long staged[3 * STAGED_COLUMNS];
    const int thread = threadIdx.x;
    const long long row = blockIdx.x;
    if (row >= channels) return;

    if (thread == 0) {
        const Trace trace = trace_of(spans, n_spans, first_channel + row);
        shared_trace = trace;
        shared_line = line_of({ring, columns, n_columns, trace}, length, detrend, median, row);
    }
    __syncthreads();
    const Window window = {ring, columns, n_columns, shared_trace};
    const Line line = shared_line;
    const long long v0 = window.trace.v0;
    const long long v1 = window.trace.v1;
    REAL* values = out + row * length;

    Seen seen = nothing_seen();
    for (int first = 0; first < n_columns; first += STAGED_COLUMNS) {
        const int count = stage_columns(columns, n_columns, first, staged);
        for (int number = 0; number < count; ++number) {
            const Column column = column_number(staged, number);
            const long long begin = column.start > v0 ? column.start : v0;
            const long long stop = column.start + column.samples;
            const long long end = stop < v1 ? stop : v1;
            if (begin >= end) continue;
            const SAMPLE* samples = ring + element(column, window.trace, begin);
            // Warps begin on a multiple of 32 elements of `out`, to write whole sectors.
            const long long before = (row * length + begin) % WARP;
            long long p = begin - before + thread;
            if (p >= begin && p < end) values[p] = kept(samples[p - begin], p, line, seen);
            for (p += THREADS; p < end; p += THREADS)
                values[p] = kept(samples[p - begin], p, line, seen);
        }
    }
    if (v0 < v1) {
        for (long long p = thread; p < v0; p += THREADS)
            values[p] = taken_off(line, extended(window, p), p);
        for (long long p = v1 + thread; p < length; p += THREADS)
            values[p] = taken_off(line, extended(window, p), p);
    }

    seen.low = block_all(seen.low, scratch, Least<Key>());
    seen.high = block_all(seen.high, scratch, Greatest<Key>());
    if (thread == 0) live[row] = is_live(seen);
    if (!is_live(seen))
        for (long long p = thread; p < length; p += THREADS) values[p] = (REAL)0;
}

#else

#define TILE 32
#define TILE_ROWS 8

extern "C" __global__ void __launch_bounds__(TILE * TILE_ROWS) gather(
    const SAMPLE* __restrict__ ring, const long long* __restrict__ columns, int n_columns,
    const long long* __restrict__ spans, int n_spans, int first_channel, int channels, int length,
    const double* __restrict__ median, int detrend, REAL* __restrict__ out,
    unsigned char* __restrict__ live)
{
    __shared__ REAL tile[TILE][TILE + 1];
    __shared__ Key lowest[TILE_ROWS][TILE];
    __shared__ Key highest[TILE_ROWS][TILE];
    __shared__ unsigned char alive[TILE];
    const int x = threadIdx.x;
    const int y = threadIdx.y;
    const long long row0 = (long long)blockIdx.x * TILE;

    // Reading, this thread has channel row0 + x; writing, it has sample x of a tile.
    Window window = {ring, columns, n_columns, {0, 0, 0, 0, 0}};
    Line line = {0.0, 0.0};
    Column column = column_number(columns, 0);
    int number = 0;
    if (row0 + x < channels) {
        window.trace = trace_of(spans, n_spans, first_channel + row0 + x);
        line = line_of(window, length, detrend, median, row0 + x);
    }
    const bool some = window.trace.v0 < window.trace.v1;

    Seen seen = nothing_seen();
    for (long long p0 = 0; p0 < length; p0 += TILE) {
        for (int i = y; i < TILE && some; i += TILE_ROWS) {
            const long long p = p0 + i;
            if (p >= window.trace.v0 && p < window.trace.v1) {
                while (p >= column.start + column.samples)
                    column = column_number(columns, ++number);
                const SAMPLE sample = ring[element(column, window.trace, p)];
                see(seen, sample);
                tile[i][x] = taken_off(line, (double)sample, p);
            } else if (p < length) {
                tile[i][x] = taken_off(line, extended(window, p), p);
            }
        }
        if (!some)
            for (int i = y; i < TILE; i += TILE_ROWS) tile[i][x] = (REAL)0;
        __syncthreads();
        for (int i = y; i < TILE; i += TILE_ROWS)
            if (row0 + i < channels && p0 + x < length)
                out[(row0 + i) * length + p0 + x] = tile[x][i];
        __syncthreads();
    }

    lowest[y][x] = seen.low;
    highest[y][x] = seen.high;
    __syncthreads();
    if (y == 0) {
        for (int i = 1; i < TILE_ROWS; ++i) {
            seen.low = Least<Key>()(seen.low, lowest[i][x]);
            seen.high = Greatest<Key>()(seen.high, highest[i][x]);
        }
        alive[x] = is_live(seen);
        if (row0 + x < channels) live[row0 + x] = alive[x];
    }
    __syncthreads();
    for (int i = 0; i < TILE && row0 + i < channels; ++i) {
        if (alive[i]) continue;
        for (long long p = thread_number(); p < length; p += TILE * TILE_ROWS)
            out[(row0 + i) * length + p] = (REAL)0;
    }
}

#endif
