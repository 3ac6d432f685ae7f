/* envelope_db: the envelope of a row's core in dB, and the first round of its grey levels.
 *
 * Contract
 *   db[k][s] = 10 * log10(|z[c][first + s] - common[s]|^2) + 120, that is 20 * log10(|.| / 1e-6);
 *   -inf where the envelope is 0. common may be null: nothing is subtracted then. Bands lie side by
 *   side in db; in z they begin every band_stride channels: k = band * band_channels + i, and
 *   c = band * band_stride + i.
 *   Per band, over its live channels: the extremes and, for percentiles, a histogram of 4,096 bins
 *   of a quarter of a dB. The last block of a band writes its levels, or the four coarse bins in
 *   which kernel `levels` looks on (see levels.cuh).
 *
 * Macros          REAL
 * Memory          z (channels, row_length) complex; common (samples) complex or null; live
 *                 (channels) uint8; facts as pick_channels left them; db (bands * band_channels,
 *                 samples) REAL; counters as in levels.cuh, reset by pick_channels.
 * Launch          blocks of 256 threads, each for 64 channels of one band by 256 samples, samples
 *                 fastest: a thread keeps its sample's common mode for all 64 channels.
 * Shared bytes    static, 16.5 KB (histogram).
 * Global memory   z is read once and db written once, both coalesced.
 * Arithmetic      REAL. In float, envelopes under 1e-19 count as 0: their squares are subnormal.
 * Reference       das_gpu.backends.cpu: CpuWorkspace.envelope_db, CpuWorkspace.levels.
 */
#include "levels.cuh"

#define ROWS 64

extern "C" __global__ void __launch_bounds__(THREADS, 4) envelope_db(
    const Complex* __restrict__ z, const Complex* __restrict__ common,
    const unsigned char* __restrict__ live, const int* __restrict__ facts, long long row_length,
    int first, int samples, int band_channels, int band_stride, int scale_kind, double scale_low,
    double scale_high, REAL* __restrict__ db, Key* __restrict__ extremes,
    unsigned int* __restrict__ tickets,
    unsigned int* __restrict__ counts, long long* __restrict__ narrowed,
    double* __restrict__ levels)
{
    __shared__ Room room;
    __shared__ unsigned int histogram[BINS];
    __shared__ unsigned char alive[ROWS];
    const int thread = threadIdx.x;
    const int columns = (samples + THREADS - 1) / THREADS;
    const int blocks = columns * ((band_channels + ROWS - 1) / ROWS);
    const int band = blockIdx.x / blocks;
    const int block = blockIdx.x % blocks;
    const int row0 = block / columns * ROWS;
    const int rows = band_channels - row0 < ROWS ? band_channels - row0 : ROWS;
    const long long sample = (long long)(block % columns) * THREADS + thread;
    const bool percentiles = scale_kind == PERCENTILES;

    if (thread < rows) alive[thread] = live[(long long)band * band_stride + row0 + thread];
    if (percentiles)
        for (int bin = thread; bin < BINS; bin += THREADS) histogram[bin] = 0;
    __syncthreads();
    Key least = ~(Key)0;
    Key greatest = 0;
    if (sample < samples) {
        const bool removed = common != nullptr;
        const Complex centre = removed ? common[sample] : make_complex(0, 0);
        for (int row = 0; row < rows; ++row) {
            const long long channel = (long long)band * band_stride + row0 + row;
            const Complex value = z[channel * row_length + first + sample];
            const REAL real = value.x - centre.x;
            const REAL imaginary = value.y - centre.y;
            const REAL level = 10 * log10(real * real + imaginary * imaginary) + 120;
            const long long drawn = (long long)band * band_channels + row0 + row;
            db[drawn * samples + sample] = level;
            if (alive[row]) {
                const Key key = ordered_key(level);
                if (key < least) least = key;
                if (key > greatest) greatest = key;
                if (percentiles) atomicAdd(&histogram[digits_of(code_of(level), 0)], 1u);
            }
        }
    }
    least = warp_all(least, Least<Key>());
    greatest = warp_all(greatest, Greatest<Key>());
    if (thread % WARP == 0 && least <= greatest) {
        atomicMin(&extremes[2 * band], least);
        atomicMax(&extremes[2 * band + 1], greatest);
    }
    unsigned int* tables = counts + (long long)band * (1 + STATISTICS * (int)ROUNDS) * BINS;
    if (percentiles) {
        __syncthreads();
        for (int bin = thread; bin < BINS; bin += THREADS)
            if (histogram[bin] != 0) atomicAdd(&tables[bin], histogram[bin]);
    }
    if (!last_to_finish(room, &tickets[3 * band], blocks)) return;

    const Scale scale = {scale_kind, scale_low, scale_high};
    const Tally tally = {
        extremes + 2 * band, tables, narrowed + 2 * STATISTICS * (1 + (int)ROUNDS) * (long long)band,
        levels + 3 * band};
    const long long n = population(facts, band, band_channels, samples);
    if (percentiles && n > 0) narrow(room, tally, scale, 0, n);
    else settle(tally, scale, n);
}
