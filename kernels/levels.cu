/* levels: a further round of the percentiles of every tile of a row.
 *
 * Contract
 *   Counts the elements of each band's live channels that share their leading digits with one of
 *   the four order statistics; the last block of a band finds the next digit and, in the last
 *   round, writes levels[band] = lower limit, upper limit, floor (dB). One launch (round 1) in
 *   float, two (rounds 1 and 2) in double. Bands without a live channel were settled before.
 *   The percentile lies within 2^-15 dB of the exact one in float, 2^-27 dB in double.
 *
 * Macros          REAL
 * Memory          db (bands * band_channels, samples) REAL; live, of which a band's begins at
 *                 band * band_stride; facts, counters: see levels.cuh.
 * Launch          blocks of 256 threads, each for 64 channels of one band by 256 samples. In every
 *                 row a warp's samples begin on a multiple of 32 bytes, so that the first block
 *                 has up to 7 samples fewer (3 in double) and the last one more.
 * Shared bytes    static, 0.1 KB. Few elements share digits, so they are counted in global memory.
 * Global memory   db is read once, coalesced.
 * Arithmetic      integers; the interpolation in double.
 * Reference       das_gpu.backends.cpu: CpuWorkspace.levels.
 */
#include "levels.cuh"

#define ROWS 64
#define SECTOR ((int)(32 / sizeof(REAL)))

extern "C" __global__ void __launch_bounds__(THREADS) levels(
    const REAL* __restrict__ db, const unsigned char* __restrict__ live,
    const int* __restrict__ facts, int samples, int band_channels, int band_stride, int round,
    double scale_low, double scale_high, const Key* __restrict__ extremes,
    unsigned int* __restrict__ tickets,
    unsigned int* __restrict__ counts, long long* __restrict__ narrowed,
    double* __restrict__ levels)
{
    __shared__ Room room;
    __shared__ unsigned char alive[ROWS];
    __shared__ long long sought[STATISTICS];
    const int columns = (samples + SECTOR - 1 + THREADS - 1) / THREADS;
    const int blocks = columns * ((band_channels + ROWS - 1) / ROWS);
    const int band = blockIdx.x / blocks;
    const int block = blockIdx.x % blocks;
    const int row0 = block / columns * ROWS;
    const int rows = band_channels - row0 < ROWS ? band_channels - row0 : ROWS;
    const long long sample = (long long)(block % columns) * THREADS + threadIdx.x;
    const long long n = population(facts, band, band_channels, samples);
    if (n == 0) return;

    unsigned int* tables = counts + (long long)band * (1 + STATISTICS * (int)ROUNDS) * BINS;
    unsigned int* own = tables + (1 + STATISTICS * (round - 1)) * BINS;
    long long* digits_by_round = narrowed + 2 * STATISTICS * (1 + (int)ROUNDS) * (long long)band;
    const long long* found = after_round(digits_by_round, round - 1);
    if (threadIdx.x < STATISTICS) {
        const int number = threadIdx.x;
        sought[number] = shared_table(found, number) == number ? found[2 * number] : -1;
    }
    if ((int)threadIdx.x < rows)
        alive[threadIdx.x] = live[(long long)band * band_stride + row0 + threadIdx.x];
    __syncthreads();
    long long wanted[STATISTICS];
    for (int number = 0; number < STATISTICS; ++number) wanted[number] = sought[number];
    for (int row = 0; row < rows; ++row) {
        const long long channel = (long long)band * band_channels + row0 + row;
        const long long own_sample = sample - channel * samples % SECTOR;
        if (!alive[row] || own_sample < 0 || own_sample >= samples) continue;
        const long long digits = digits_of(code_of(db[channel * samples + own_sample]), round);
        for (int number = 0; number < STATISTICS; ++number)
            if (digits >> DIGIT_BITS == wanted[number])
                atomicAdd(&own[number * BINS + (digits & (BINS - 1))], 1u);
    }
    if (!last_to_finish(room, &tickets[3 * band + round], blocks)) return;

    const Scale scale = {PERCENTILES, scale_low, scale_high};
    const Tally tally = {extremes + 2 * band, tables, digits_by_round, levels + 3 * band};
    narrow(room, tally, scale, round, n);
    if (round == (int)ROUNDS) settle(tally, scale, n);
}
