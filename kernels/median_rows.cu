/* median_rows: the exact median of each channel over the core of a window.
 *
 * Contract
 *   median[r] is the median of samples [core0, core1) of channel first_channel + r; the mean of the
 *   two middle ones where their count is even; NaN where a sample is NaN. The core lies within a
 *   trace's usable samples wherever a tile is delivered; where it does not, the median is that of
 *   its usable part, and 0 where there is none.
 *
 * Method          radix select (Alabi, Blanchard, Gordon and Steinbach, "Fast k-selection
 *                 algorithms for graphics processors", ACM J. Exp. Algorithmics 17, 2012): keys
 *                 less the least one are narrowed by 8 bits at a time from the highest bit in use,
 *                 each time by a histogram of the digit among the keys still in question. The
 *                 upper middle value is the same key again, or the next greater one.
 * Macros          SAMPLE, TIME_MAJOR (defined when slots are stored sample by sample)
 * Memory          ring and tables: see ring.cuh; median (channels)
 * Launch          a block of 256 threads a channel.
 * Shared bytes    static: 2.1 KB; dynamic: the core's keys when they fit (kept = 1), else none,
 *                 and every pass reads the ring again.
 * Global memory   kept: each core sample is read once. TIME_MAJOR: neighbouring channels share a
 *                 sector, which the L2 cache keeps for the blocks beside this one.
 * Arithmetic      integers; the mean of two values in double. Exact.
 * Reference       numpy.median over the core of the window in float64.
 */
#include "ring.cuh"

#ifndef SAMPLE
#define SAMPLE int
#endif

#define THREADS 256
#define DIGIT_BITS 8
#define DIGITS 256

using Key = KeyOf<SAMPLE>::type;

/* Calls visit(i, key) for this thread's share of the samples [begin, end) of a trace, i from 0.
 * Holds barriers. */
template <class Visit>
__device__ __forceinline__ void each_key(
    const SAMPLE* ring, const long long* columns, int n_columns, long long* staged,
    const Trace& trace, long long begin, long long end, Visit visit)
{
    for (int first = 0; first < n_columns; first += STAGED_COLUMNS) {
        const int count = stage_columns(columns, n_columns, first, staged);
        for (int number = 0; number < count; ++number) {
            const Column column = column_number(staged, number);
            const long long from = column.start > begin ? column.start : begin;
            const long long stop = column.start + column.samples;
            const long long to = stop < end ? stop : end;
            for (long long p = from + threadIdx.x; p < to; p += THREADS)
                visit(p - begin, ordered_key(ring[element(column, trace, p)]));
        }
    }
}

/* The same over keys in shared memory. */
template <class Visit>
__device__ __forceinline__ void each_kept(const Key* keys, long long count, Visit visit)
{
    for (long long i = threadIdx.x; i < count; i += THREADS) visit(i, keys[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) median_rows(
    const SAMPLE* __restrict__ ring, const long long* __restrict__ columns, int n_columns,
    const long long* __restrict__ spans, int n_spans, int first_channel, int channels, int core0,
    int core1, int kept, double* __restrict__ median)
{
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    __shared__ Trace shared_trace;
    __shared__ unsigned int histogram[DIGITS];
    __shared__ unsigned int shared_digit;
    __shared__ unsigned int shared_below;
    __shared__ Key scratch[WARP];
    __shared__ long long staged_columns[3 * STAGED_COLUMNS];
    Key* keys = (Key*)dynamic_shared;
    const int thread = threadIdx.x;
    const long long row = blockIdx.x;
    if (row >= channels) return;

    if (thread == 0) shared_trace = trace_of(spans, n_spans, first_channel + row);
    __syncthreads();
    const Trace trace = shared_trace;
    const long long begin = core0 > trace.v0 ? core0 : trace.v0;
    const long long end = core1 < trace.v1 ? core1 : trace.v1;
    const long long count = end - begin;
    if (count <= 0) {
        if (thread == 0) median[row] = 0.0;
        return;
    }

    Key low = (Key)~(Key)0;
    Key high = 0;
    const auto keep = [&](long long i, Key key) {
        if (kept) keys[i] = key;
        if (key < low) low = key;
        if (key > high) high = key;
    };
    each_key(ring, columns, n_columns, staged_columns, trace, begin, end, keep);
    low = block_all(low, scratch, Least<Key>());
    high = block_all(high, scratch, Greatest<Key>());
    if (is_nan_key<SAMPLE>(high)) {
        if (thread == 0) median[row] = (double)from_key<SAMPLE>(high);
        return;
    }

    // Keys in question: those whose bits above `open` equal those of `found`, both less `low`.
    int open = bits_of((Key)(high - low));
    Key found = 0;
    unsigned int rank = (unsigned int)((count - 1) / 2);
    unsigned int equal = (unsigned int)count;
    while (open > 0) {
        const int width = open < DIGIT_BITS ? open : DIGIT_BITS;
        const int shift = open - width;
        histogram[thread] = 0;
        __syncthreads();
        const auto tally = [&](long long, Key key) {
            const Key relative = (Key)(key - low);
            if (relative >> shift >> width == found >> shift >> width)
                atomicAdd(&histogram[(relative >> shift) & ((1u << width) - 1u)], 1u);
        };
        if (kept) each_kept(keys, count, tally);
        else each_key(ring, columns, n_columns, staged_columns, trace, begin, end, tally);
        __syncthreads();
        if (thread < WARP) {
            const unsigned int* bins = histogram + thread * (DIGITS / WARP);
            unsigned int sum = 0;
            for (int i = 0; i < DIGITS / WARP; ++i) sum += bins[i];
            const unsigned int after = warp_running_sum(sum);
            unsigned int below = after - sum;
            if (below <= rank && rank < after) {
                int i = 0;
                while (rank >= below + bins[i]) below += bins[i++];
                shared_digit = (unsigned int)(thread * (DIGITS / WARP) + i);
                shared_below = below;
            }
        }
        __syncthreads();
        found |= (Key)shared_digit << shift;
        rank -= shared_below;
        equal = histogram[shared_digit];
        open = shift;
        __syncthreads();
    }

    Key upper = (Key)(low + found);
    if (count % 2 == 0 && rank + 1 >= equal) {
        const Key lower = upper;
        upper = (Key)~(Key)0;
        const auto next = [&](long long, Key key) {
            if (key > lower && key < upper) upper = key;
        };
        if (kept) each_kept(keys, count, next);
        else each_key(ring, columns, n_columns, staged_columns, trace, begin, end, next);
        upper = block_all(upper, scratch, Least<Key>());
    }
    if (thread == 0) {
        const double below = (double)from_key<SAMPLE>((Key)(low + found));
        const double above = (double)from_key<SAMPLE>(upper);
        median[row] = (below + above) / 2.0;
    }
}
