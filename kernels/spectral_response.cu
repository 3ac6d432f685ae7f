/* spectral_response: the spectrum of real windows becomes that of their band-passed, decimated
 * analytic signal.
 *
 * Contract
 *   folded[r, j] = sum over f of weights[b] * spectrum[r, b], b = j + f * kept, first <= b < last,
 *   for outputs j in [j0, j1); other outputs are not written. The inverse complex transform of
 *   `kept` points, unscaled, then gives the signal, because the weights hold twice the zero-phase
 *   response and the forward transform's 1/N. A signal without negative frequencies folds by whole
 *   multiples of the kept length only when every step-th sample is kept.
 *   The caller zeroes `folded` once: bins outside [first, last) have no weight that counts, so what
 *   is outside [j0, j1) stays zero for as long as the inverse transform is not done in place.
 *
 * Macros          REAL
 * Memory          spectrum (rows, bins) complex, weights (at least last), folded (rows, kept)
 *                 complex; all C-contiguous
 * Launch          grid (ceil(rows / 16), ceil((j1 - j) / 256)), j being j0 rounded down to a
 *                 multiple of 32; blocks of 256 threads: a thread has one output of 16 rows, so a
 *                 weight is read once for 16 rows.
 * Shared bytes    none
 * Global memory   each bin in [first, last) is read once, each output in [j0, j1) written once.
 * Arithmetic      REAL; sums in ascending order of f
 * Reference       CpuWorkspace.analytic in das_gpu/backends/cpu.py. One-sided
 *                 spectrum: S. L. Marple, "Computing the discrete-time analytic signal via FFT",
 *                 IEEE Trans. Signal Processing 47 (1999); folding by decimation: Oppenheim and
 *                 Schafer, Discrete-Time Signal Processing, section 4.6.
 */
#include "common.cuh"

#define THREADS 256
#define ROWS 16

extern "C" __global__ void __launch_bounds__(THREADS) spectral_response(
    const Complex* __restrict__ spectrum, const REAL* __restrict__ weights,
    Complex* __restrict__ folded, int rows, int bins, int first, int last, int kept, int j0, int j1)
{
    // Warps begin on a multiple of 32 bins, where rows of a multiple of 4 bins begin on a sector.
    const int j = j0 / WARP * WARP + (int)(blockIdx.y * THREADS + threadIdx.x);
    const long long row0 = (long long)blockIdx.x * ROWS;
    if (j < j0 || j >= j1) return;

    Complex sums[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) sums[i] = make_complex((REAL)0, (REAL)0);
    for (int bin = j; bin < last; bin += kept) {
        if (bin < first) continue;
        const REAL weight = weights[bin];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            if (row0 + i < rows) {
                const Complex value = spectrum[(row0 + i) * bins + bin];
                sums[i].x += weight * value.x;
                sums[i].y += weight * value.y;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
        if (row0 + i < rows) folded[(row0 + i) * kept + j] = sums[i];
}
