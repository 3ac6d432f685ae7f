/* pick_channels and common_mode: which channels carry the common mode of a row, and its value.
 *
 * Contract
 *   pick_channels  picked = every k-th live channel, k the smallest step that leaves at most `most`
 *                  of them. facts = number picked, number live, first live channel, last live
 *                  channel (-1 where there is none), then the dead channels of each band. None are
 *                  picked when none live, or when the first and the last live channel are less than
 *                  `aperture_m` apart. Resets the counters that envelope_db and levels add to.
 *   common_mode    common[s] = median over the picked rows of the real parts at core sample s, and
 *                  of the imaginary parts; the mean of the two middle values where their count is
 *                  even; zero when none are picked.
 *
 * Method          medians by bisection on ordered keys: the answer is built bit by bit from the
 *                 highest, each time counting the keys below a candidate, until one key is left
 *                 (the binary radix search of Alabi, Blanchard, Gordon and Steinbach, "Fast
 *                 k-selection algorithms for graphics processors", ACM J. Exp. Algorithmics 17,
 *                 2012). A warp holds a column's 1,024 keys in registers.
 * Bands           of band_channels channels begin every band_stride channels; where that is less, a
 *                 channel is part of several.
 * Macros          REAL
 * Memory          live (channels) uint8, distance_m (channels) double, picked (most) int32,
 *                 facts (4 + bands) int32; extremes (bands, 2) keys, tickets (bands, 3) uint32,
 *                 counts (n_counts) uint32; z (channels, row_length) complex, its core being
 *                 columns [first, first + samples); common (samples) complex.
 * Launch          pick_channels: 1,024 threads; block 0 picks, all others reset counters.
 *                 common_mode: a block of 256 threads for every 64 bytes of a row (8 complex
 *                 samples in float, 4 in double), counted from the row's beginning, so that those
 *                 of every row that begins on a sector are two of them.
 * Shared bytes    pick_channels: static, 260. common_mode: dynamic, 64 for each row that can be
 *                 picked, 64 KB at most. Keys of a row are permuted by an exclusive or with the
 *                 row's number, so that neither rows nor columns meet in a bank.
 * Arithmetic      integers; one sum of two values in REAL.
 * Reference       das_gpu.backends.cpu: median_channels, CpuWorkspace.common_mode.
 */
#include "common.cuh"

#define PICKERS 1024
#define THREADS 256
#define MOST 1024
#define REALS ((int)(64 / sizeof(REAL)))
#define FACTS 4
#define GROUP 8

using Key = KeyOf<REAL>::type;

__device__ __forceinline__ void reset(
    Key* extremes, unsigned int* tickets, unsigned int* counts, int bands, long long n_counts)
{
    const long long stride = (long long)(gridDim.x - 1) * PICKERS;
    const long long begin = (long long)(blockIdx.x - 1) * PICKERS + threadIdx.x;
    for (long long i = begin; i < n_counts; i += stride) counts[i] = 0;
    for (long long band = begin; band < bands; band += stride) {
        extremes[2 * band] = ~(Key)0;
        extremes[2 * band + 1] = 0;
        for (int round = 0; round < 3; ++round) tickets[3 * band + round] = 0;
    }
}

extern "C" __global__ void __launch_bounds__(PICKERS) pick_channels(
    const unsigned char* __restrict__ live, const double* __restrict__ distance_m, int channels,
    int most, double aperture_m, int bands, int band_channels, int band_stride,
    int* __restrict__ picked,
    int* __restrict__ facts, Key* __restrict__ extremes, unsigned int* __restrict__ tickets,
    unsigned int* __restrict__ counts, long long n_counts)
{
    __shared__ int scratch[WARP];
    __shared__ int of_warp[WARP];
    const int thread = threadIdx.x;
    if (blockIdx.x > 0) {
        reset(extremes, tickets, counts, bands, n_counts);
        return;
    }
    const int share = (channels + PICKERS - 1) / PICKERS;
    const int begin = thread * share < channels ? thread * share : channels;
    const int end = channels - begin < share ? channels : begin + share;

    for (int band = thread; band < bands; band += PICKERS) facts[FACTS + band] = 0;
    __syncthreads();
    int mine = 0;
    int first = channels;
    int last = -1;
    for (int channel = begin; channel < end; ++channel) {
        if (live[channel]) {
            if (mine == 0) first = channel;
            last = channel;
            ++mine;
        } else {
            int band = channel < band_channels ? 0 : (channel - band_channels) / band_stride + 1;
            for (; band < bands && band * band_stride <= channel; ++band)
                atomicAdd(&facts[FACTS + band], 1);
        }
    }
    const int alive = block_all(mine, scratch, Sum<int>());
    first = block_all(first, scratch, Least<int>());
    last = block_all(last, scratch, Greatest<int>());

    const int running = warp_running_sum(mine);
    if (thread % WARP == WARP - 1) of_warp[thread / WARP] = running;
    __syncthreads();
    int rank = running - mine;
    for (int warp = 0; warp < thread / WARP; ++warp) rank += of_warp[warp];

    const bool narrow = alive == 0 || fabs(distance_m[last] - distance_m[first]) < aperture_m;
    const int step = alive > most ? (alive + most - 1) / most : 1;
    if (thread == 0) {
        facts[0] = narrow ? 0 : (alive + step - 1) / step;
        facts[1] = alive;
        facts[2] = alive > 0 ? first : -1;
        facts[3] = last;
    }
    if (narrow) return;
    for (int channel = begin; channel < end; ++channel) {
        if (!live[channel]) continue;
        if (rank % step == 0) picked[rank / step] = channel;
        ++rank;
    }
}

/* Where the key of a row and a column of real numbers lies in shared memory. */
__device__ __forceinline__ int place(int row, int part)
{
    return row * REALS + (part ^ ((row >> 1) & (REALS - 1)));
}

/* How many of the warp's keys a test holds for, of those that may be among the first n. */
template <class Test>
__device__ __forceinline__ int warp_count(const Key (&keys)[MOST / WARP], int n, Test test)
{
    int count = 0;
#pragma unroll
    for (int group = 0; group < MOST / WARP; group += GROUP) {
        if (group * WARP >= n) break;
#pragma unroll
        for (int i = group; i < group + GROUP; ++i) count += test(keys[i]) ? 1 : 0;
    }
    return warp_all(count, Sum<int>());
}

/* The least of the warp's keys that a test holds for; the greatest key there is where none is. */
template <class Test>
__device__ __forceinline__ Key warp_least(const Key (&keys)[MOST / WARP], Test test)
{
    Key least = ~(Key)0;
#pragma unroll
    for (int i = 0; i < MOST / WARP; ++i)
        if (test(keys[i]) && keys[i] < least) least = keys[i];
    return warp_all(least, Least<Key>());
}

/* Median of the warp's keys, `n` of which are real; the others are the greatest key there is.
 *
 * The key looked for lies in [lower, lower + 2 << bit), with `within` of the n keys; `below` of
 * them are less. When it is alone there, the bits that are left need no search. */
__device__ __forceinline__ REAL warp_median(const Key (&keys)[MOST / WARP], int n)
{
    const int rank = (n - 1) / 2;
    Key lower = 0;
    int below = 0;
    int within = n;
#pragma unroll 1
    for (int bit = 8 * (int)sizeof(Key) - 1; bit >= 0 && within > 1; --bit) {
        const Key candidate = lower | ((Key)1 << bit);
        const int count = warp_count(keys, n, [=](Key key) { return key < candidate; });
        if (count <= rank) {
            within -= count - below;
            below = count;
            lower = candidate;
        } else {
            within = count - below;
        }
    }
    if (within == 1) lower = warp_least(keys, [=](Key key) { return key >= lower; });
    Key upper = lower;
    if (n % 2 == 0 && below + within == rank + 1)
        upper = warp_least(keys, [=](Key key) { return key > lower; });
    return (from_key<REAL>(lower) + from_key<REAL>(upper)) / 2;
}

// One block at least: asked for more, or for nothing, some compilers spill the keys of double.
extern "C" __global__ void __launch_bounds__(THREADS, 1) common_mode(
    const Complex* __restrict__ z, const int* __restrict__ picked, const int* __restrict__ facts,
    long long row_length, int first, int samples, Complex* __restrict__ common)
{
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    Key* keys = (Key*)dynamic_shared;
    const int thread = threadIdx.x;
    const int lane = thread % WARP;
    const int n = facts[0];
    const int begin = (int)blockIdx.x * (REALS / 2) - first % (REALS / 2);
    const int sample0 = begin > 0 ? begin : 0;
    const int end = begin + REALS / 2 < samples ? begin + REALS / 2 : samples;
    const int parts = 2 * (end - sample0);
    const REAL* values = (const REAL*)z;
    REAL* medians = (REAL*)common + 2 * (long long)sample0;

    for (int i = thread; i < n * REALS; i += THREADS) {
        const int row = i / REALS;
        const int part = i % REALS;
        if (part < parts) {
            const long long start = picked[row] * row_length + first + sample0;
            keys[place(row, part)] = ordered_key(values[2 * start + part]);
        }
    }
    __syncthreads();
    for (int part = thread / WARP; part < parts; part += THREADS / WARP) {
        Key column[MOST / WARP];
#pragma unroll
        for (int i = 0; i < MOST / WARP; ++i) {
            const int row = i * WARP + lane;
            column[i] = row < n ? keys[place(row, part)] : ~(Key)0;
        }
        const REAL median = n > 0 ? warp_median(column, n) : (REAL)0;
        if (lane == 0) medians[part] = median;
    }
}
