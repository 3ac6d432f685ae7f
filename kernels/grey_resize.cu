/* along_time and along_channels: the images of a row's tiles, one axis at a time.
 *
 * Contract
 *   Both resize every band's tile along one axis with tables of weights; run one after the other
 *   they turn envelopes in dB into pixels. A band's channels that do not live, and bands without
 *   levels, are 0. Levels under a tile's floor count as the floor.
 *   PILLOW 0   (level - low) is resized, along time first, multiplied by highest / (high - low),
 *              clipped to [0, highest] and rounded to the nearest integer, halves to even.
 *   PILLOW 1   levels are scaled to [0, highest], clipped and truncated to 8 bits; each pass then
 *              sums 8-bit values times 22-bit fixed-point weights, rounds and clips to 8 bits, in
 *              the order in which Pillow makes the passes: TIME_FIRST. Equal tiles of 8 bits give
 *              the pixels of Pillow's Image.resize bit by bit.
 *
 * Method          separable resampling with precomputed weights, as Pillow's libImaging/Resample.c.
 * Macros          REAL, PIXEL (unsigned char or unsigned short), PILLOW, TIME_FIRST
 * Memory          live, of which a band's begins at band * band_stride;
 *                 db (bands * band_channels, samples) REAL; half, between the passes: (bands *
 *                 band_channels, n_time) where time comes first, else (bands, n_channels, samples),
 *                 REAL or, for Pillow, 8 bits; pixels (bands, height, width) PIXEL, rows being time
 *                 (time_down) or channels; levels (bands, 3) double.
 *                 Tables: bounds (n_out, 2) int32, half-open ranges of inputs; weights (taps,
 *                 n_out): the weight of input bounds[out][0] + tap is weights[tap][out].
 * Launch          along_time: blocks of 256 threads, each for 32 rows of one band by 256 outputs.
 *                 along_channels: blocks of 32 x 8 threads, each for 32 samples by 32 outputs of
 *                 one band. In a thread's eyes its outputs stay in registers while the inputs pass
 *                 by in segments of shared memory.
 * Shared bytes    static: along_time 32 KB (16 KB in double, 8 KB for Pillow), along_channels at
 *                 most 18.5 KB.
 * Global memory   inputs are read coalesced; blocks beside each other share a filter's width.
 * Arithmetic      REAL, or exact integers; Pillow's scaling in double, as NumPy does it.
 * Reference       das_gpu.backends.grey: in_float, by_pillow.
 */
#include "common.cuh"

#ifndef PIXEL
#define PIXEL unsigned char
#endif
#ifndef PILLOW
#define PILLOW 0
#endif
#ifndef TIME_FIRST
#define TIME_FIRST 1
#endif

#define THREADS 256
#define ROWS 32
#define WARPS (THREADS / WARP)
#define SEGMENT (sizeof(Value) < 8 ? 256 : 64)
#define SECTOR ((int)(32 / sizeof(TimeInput)))
#define SIDE 32
#define DEPTH 64
#define PRECISION_BITS 22

#if PILLOW
using Value = unsigned char;
using Weight = int;
#define HALF (1 << (PRECISION_BITS - 1))
#else
using Value = REAL;
using Weight = REAL;
#define HALF ((Weight)0)
#endif

#if TIME_FIRST
using TimeInput = REAL;
using TimeOutput = Value;
using ChannelInput = Value;
using ChannelOutput = PIXEL;
#else
using ChannelInput = REAL;
using ChannelOutput = Value;
using TimeInput = Value;
using TimeOutput = PIXEL;
#endif

/* A band's levels, and the greatest pixel value. */
struct Grey {
    double low;
    double high;
    double floor_db;
    double highest;
};

__device__ __forceinline__ Grey grey_of(const double* levels, int band, int highest)
{
    return {levels[3 * band], levels[3 * band + 1], levels[3 * band + 2], (double)highest};
}

/* What the first pass sums for a level in dB of a live channel. */
__device__ __forceinline__ Value graded(REAL db, const Grey& grey)
{
    const REAL level = fmax(db, (REAL)grey.floor_db);
#if PILLOW
    if (!(grey.high > grey.low)) return 0;
    const double scaled = (level - grey.low) / (grey.high - grey.low) * grey.highest;
    return (Value)fmin(fmax(scaled, 0.0), grey.highest);
#else
    return level - (REAL)grey.low;
#endif
}

/* What the pass along time sums for one of its inputs. */
__device__ __forceinline__ Value taken(TimeInput value, const Grey& grey)
{
#if TIME_FIRST
    return graded(value, grey);
#else
    return value;
#endif
}

/* A pass's sum as it is handed to the next pass. */
__device__ __forceinline__ Value handed_on(Weight sum)
{
#if PILLOW
    const int value = sum >> PRECISION_BITS;
    return (Value)(value < 0 ? 0 : value > 255 ? 255 : value);
#else
    return sum;
#endif
}

/* The last pass's sum as a pixel. */
__device__ __forceinline__ PIXEL pixel_of(Weight sum, const Grey& grey)
{
#if PILLOW
    return handed_on(sum);
#else
    const double factor = grey.high > grey.low ? grey.highest / (grey.high - grey.low) : 0.0;
    const REAL scaled = sum * (REAL)factor;
    return (PIXEL)rint(fmin(fmax(scaled, (REAL)0), (REAL)grey.highest));
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) along_time(
    const TimeInput* __restrict__ input, const unsigned char* __restrict__ live,
    const double* __restrict__ levels, const int* __restrict__ bounds,
    const Weight* __restrict__ weights, int band_rows, int band_stride, int n_in, int n_out,
    int highest, int time_down, TimeOutput* __restrict__ output)
{
    __shared__ Value held[ROWS][SEGMENT];
    __shared__ bool alive[ROWS];
    const int thread = threadIdx.x;
    const int lane = thread % WARP;
    const int own = thread / WARP;
    const int chunks = (n_out + THREADS - 1) / THREADS;
    const int groups = (band_rows + ROWS - 1) / ROWS;
    const int band = blockIdx.x / chunks / groups;
    const int row0 = blockIdx.x / chunks % groups * ROWS;
    const int rows = band_rows - row0 < ROWS ? band_rows - row0 : ROWS;
    const int out0 = blockIdx.x % chunks * THREADS;
    const int out = out0 + thread;
    const int last = n_out - out0 < THREADS ? n_out - 1 : out0 + THREADS - 1;
    const int begin = bounds[2 * out0];
    const int end = bounds[2 * last + 1];
    const int low = out < n_out ? bounds[2 * out] : end;
    const int high = out < n_out ? bounds[2 * out + 1] : end;
    const Grey grey = grey_of(levels, band, highest);

    if (thread < ROWS)
        alive[thread] =
            thread < rows && (!TIME_FIRST || live[(long long)band * band_stride + row0 + thread]);
    Weight sums[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) sums[i] = HALF;
    for (int segment = begin; segment < end; segment += SEGMENT) {
        const int stop = end - segment < SEGMENT ? end : segment + SEGMENT;
        __syncthreads();
        for (int r = own; r < ROWS; r += WARPS) {
            if (!alive[r]) {
                for (int i = lane; i < stop - segment; i += WARP) held[r][i] = 0;
                continue;
            }
            // Warps begin on a multiple of 32 bytes and stay together, to read whole sectors.
            const long long start = ((long long)band * band_rows + row0 + r) * n_in;
            const int before = (int)((start + segment) % SECTOR);
            int i = segment - before + lane;
            if (i >= segment && i < stop) held[r][i - segment] = taken(input[start + i], grey);
            for (i += WARP; i < stop; i += WARP)
                held[r][i - segment] = taken(input[start + i], grey);
            __syncwarp();
        }
        __syncthreads();
        const int to = high < stop ? high : stop;
        for (int i = low > segment ? low : segment; i < to; ++i) {
            const Weight weight = weights[(long long)(i - low) * n_out + out];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) sums[r] += weight * held[r][i - segment];
        }
    }
    if (out >= n_out) return;
    const long long band_pixels = (long long)band * band_rows * n_out;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (r < rows) {
#if TIME_FIRST
            output[band_pixels + (long long)(row0 + r) * n_out + out] = handed_on(sums[r]);
#else
            output[band_pixels + (time_down ? (long long)out * band_rows + row0 + r
                                            : (long long)(row0 + r) * n_out + out)] =
                pixel_of(sums[r], grey);
#endif
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) along_channels(
    const ChannelInput* __restrict__ input, const unsigned char* __restrict__ live,
    const double* __restrict__ levels, const int* __restrict__ bounds,
    const Weight* __restrict__ weights, int n_in, int band_stride, int columns, int n_out,
    int highest, int time_down, ChannelOutput* __restrict__ output)
{
    __shared__ Value held[DEPTH][SIDE];
    __shared__ ChannelOutput drawn[SIDE][SIDE + 1];
    const int lane = threadIdx.x;
    const int own = threadIdx.y;
    const int across = (columns + SIDE - 1) / SIDE;
    const int groups = (n_out + SIDE - 1) / SIDE;
    const int band = blockIdx.x / across / groups;
    const int out0 = blockIdx.x / across % groups * SIDE;
    const int column0 = blockIdx.x % across * SIDE;
    const int column = column0 + lane;
    const int last = n_out - out0 < SIDE ? n_out - 1 : out0 + SIDE - 1;
    const int begin = bounds[2 * out0];
    const int end = bounds[2 * last + 1];
    const Grey grey = grey_of(levels, band, highest);

    Weight sums[SIDE / WARPS];
    int low[SIDE / WARPS];
    int high[SIDE / WARPS];
#pragma unroll
    for (int o = 0; o < SIDE / WARPS; ++o) {
        const int out = out0 + own + o * WARPS;
        sums[o] = HALF;
        low[o] = out < n_out ? bounds[2 * out] : end;
        high[o] = out < n_out ? bounds[2 * out + 1] : end;
    }
    for (int segment = begin; segment < end; segment += DEPTH) {
        const int stop = end - segment < DEPTH ? end : segment + DEPTH;
        __syncthreads();
        for (int i = segment + own; i < stop; i += WARPS) {
            const long long row = (long long)band * n_in + i;
            Value value = 0;
            if (column < columns) {
#if TIME_FIRST
                value = input[row * columns + column];
#else
                const bool alive = live[(long long)band * band_stride + i];
                if (alive) value = graded(input[row * columns + column], grey);
#endif
            }
            held[i - segment][lane] = value;
        }
        __syncthreads();
#pragma unroll
        for (int o = 0; o < SIDE / WARPS; ++o) {
            const int out = out0 + own + o * WARPS;
            const int to = high[o] < stop ? high[o] : stop;
            for (int i = low[o] > segment ? low[o] : segment; i < to; ++i)
                sums[o] += weights[(long long)(i - low[o]) * n_out + out] * held[i - segment][lane];
        }
    }
#pragma unroll
    for (int o = 0; o < SIDE / WARPS; ++o) {
#if TIME_FIRST
        drawn[own + o * WARPS][lane] = pixel_of(sums[o], grey);
#else
        drawn[own + o * WARPS][lane] = handed_on(sums[o]);
#endif
    }
    __syncthreads();
    const long long band_pixels = (long long)band * n_out * columns;
    for (int i = own; i < SIDE; i += WARPS) {
        if (TIME_FIRST && time_down) {
            if (column0 + i < columns && out0 + lane < n_out)
                output[band_pixels + (long long)(column0 + i) * n_out + out0 + lane] =
                    drawn[lane][i];
        } else if (out0 + i < n_out && column < columns) {
            output[band_pixels + (long long)(out0 + i) * columns + column] = drawn[i][lane];
        }
    }
}
