/* sosfiltfilt: second-order sections forwards and backwards along each row, then decimation.
 *
 * Contract
 *   out[r, i] is sample i * step of row r of x, filtered forwards and backwards by the cascade of
 *   SECTIONS sections, over the row lengthened at both ends by its odd extension of `padding`
 *   samples (0 <= padding < length). Either pass starts from the state in which the cascade is at
 *   rest on its first sample.
 *
 * Macros          SECTIONS (1 or more), REAL (the type of out)
 * Memory          x (rows, length) double; scratch (ceil(rows / 32), length + 2 * padding, 32)
 *                 double: the forward pass, turned so that the lanes of a warp lie side by side;
 *                 out (rows, ceil(length / step)). All C-contiguous.
 * Launch          a block of one warp for 32 rows, one lane a row. Rows are the only parallelism: a
 *                 sample waits for the one before it. One-warp blocks spread over every
 *                 multiprocessor.
 * Shared bytes    static: 8.3 KB, a tile of 32 rows x 32 samples, through which x is read and out
 *                 is written along the rows, so that both are coalesced, and in which the backward
 *                 pass finds what the forward pass left
 * Arithmetic      double: transposed direct form II, one section after the other. The coefficients
 *                 arrive by value, as a structure in constant memory: as an array behind a pointer
 *                 they would take registers and spill at 8 sections.
 * Reference       scipy.signal.sosfiltfilt(sections, x, padtype="odd", padlen=padding); states from
 *                 scipy.signal.sosfilt_zi. F. Gustafsson, "Determining the initial states in
 *                 forward-backward filtering", IEEE Trans. Signal Processing 44 (1996).
 */
#include "common.cuh"

#ifndef SECTIONS
#define SECTIONS 8
#endif

/* One section: b0 + b1/z + b2/z^2 over 1 + a1/z + a2/z^2, and its state at rest on ones. */
struct Section {
    double b0;
    double b1;
    double b2;
    double a1;
    double a2;
    double rest0;
    double rest1;
};

struct Cascade {
    Section sections[SECTIONS];
};

struct State {
    double first[SECTIONS];
    double second[SECTIONS];
};

__device__ __forceinline__ void settle(const Cascade& cascade, State& state, double value)
{
#pragma unroll
    for (int s = 0; s < SECTIONS; ++s) {
        state.first[s] = cascade.sections[s].rest0 * value;
        state.second[s] = cascade.sections[s].rest1 * value;
    }
}

__device__ __forceinline__ double filtered(const Cascade& cascade, State& state, double value)
{
#pragma unroll
    for (int s = 0; s < SECTIONS; ++s) {
        const Section& section = cascade.sections[s];
        const double result = section.b0 * value + state.first[s];
        state.first[s] = section.b1 * value - section.a1 * result + state.second[s];
        state.second[s] = section.b2 * value - section.a2 * result;
        value = result;
    }
    return value;
}

/* Sample i of a row, or of its odd extension where i is outside [0, length). */
__device__ __forceinline__ double extended(const double* values, int length, int i)
{
    if (i < 0) return 2.0 * values[0] - values[-i];
    if (i >= length) return 2.0 * values[length - 1] - values[2 * (length - 1) - i];
    return values[i];
}

extern "C" __global__ void __launch_bounds__(WARP) sosfiltfilt(
    const double* __restrict__ x, double* __restrict__ scratch, REAL* __restrict__ out,
    const __grid_constant__ Cascade cascade, int rows, int length, int padding, int step)
{
    __shared__ double tile[WARP][WARP + 1];
    const int lane = threadIdx.x;
    const long long row0 = (long long)blockIdx.x * WARP;
    const int rows_here = rows - row0 < WARP ? (int)(rows - row0) : WARP;
    const int kept = (length + step - 1) / step;
    const int total = length + 2 * padding;
    double* forward = scratch + (long long)blockIdx.x * total * WARP + lane;

    State state;
    double value = 0.0;
    // Lanes without a row filter what the tile holds for them: zeros.
    for (int row = rows_here; row < WARP; ++row) tile[row][lane] = 0.0;
    for (int t0 = 0; t0 < total; t0 += WARP) {
        const int count = total - t0 < WARP ? total - t0 : WARP;
        for (int row = 0; row < rows_here; ++row)
            if (lane < count)
                tile[row][lane] = extended(x + (row0 + row) * length, length, t0 + lane - padding);
        __syncwarp();
        if (t0 == 0) settle(cascade, state, tile[lane][0]);
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
            value = filtered(cascade, state, tile[lane][i]);
            forward[(long long)(t0 + i) * WARP] = value;
        }
        __syncwarp();
    }

    settle(cascade, state, value);
    // Tiles end at the last sample of the extension; what precedes the row is not needed.
    for (int t1 = total; t1 > padding; t1 -= WARP) {
        const int t0 = t1 > WARP ? t1 - WARP : 0;
        // All loads of a tile are under way together; the chain then waits for none of them.
#pragma unroll 8
        for (int i = 0; i < t1 - t0; ++i) tile[lane][i] = forward[(long long)(t0 + i) * WARP];
#pragma unroll 1
        for (int i = t1 - t0 - 1; i >= 0; --i)
            tile[lane][i] = filtered(cascade, state, tile[lane][i]);
        __syncwarp();
        const int sample = t0 + lane - padding;
        if (lane < t1 - t0 && sample >= 0 && sample < length && sample % step == 0)
            for (int row = 0; row < rows_here; ++row)
                out[(row0 + row) * kept + sample / step] = (REAL)tile[row][lane];
        __syncwarp();
    }
}
