/* Grey levels of a row's tiles: the counters that several kernels share, and their reading.
 *
 * A level in dB becomes an integer code: floor(dB * 2^14) in float, floor(dB * 2^26) in double,
 * moved so that -512 dB is 0, and kept within [-512, 512) dB. The code's leading 12 bits are its
 * coarse bin (a quarter of a dB), each further 12 bits its bin in one more round. As scaling by a
 * power of two is exact, an element falls into the same bins in every kernel.
 *
 * Four order statistics are looked for: the two on either side of each percentile. A round counts,
 * for each of them, the elements whose code begins with the digits found so far; the last block of
 * a band to finish its counting finds the next digit. Statistics with equal digits share the table
 * of the first of them. ("threadFenceReduction" in NVIDIA's CUDA samples shows how a block knows
 * that it is the last.)
 *
 * Per band: extremes (2) least and greatest key; tickets (3) blocks that have finished a round;
 * counts (1 + 4 * ROUNDS, 4096) one table for the coarse round and four for each further one;
 * narrowed (1 + ROUNDS, 4, 2) after each round: digits found so far and rank among the elements
 * that share them (a table of its own for each, so that no block writes what another one reads);
 * levels (3) lower and upper limit and floor in dB.
 */
#pragma once

#include "common.cuh"

#define THREADS 256
#define DIGIT_BITS 12
#define BINS 4096
#define STATISTICS 4
#define ROUNDS (sizeof(REAL) == 4 ? 1 : 2)
#define CODE_BITS (DIGIT_BITS * (1 + (int)ROUNDS))
#define RANGE_BITS 10
#define FACTS 4
#define FLOOR_DB 200.0

#define PERCENTILES 0
#define EXTREMES 1
#define FIXED 2

using Key = KeyOf<REAL>::type;

/* Where a tile's grey limits come from: two percentiles, its extremes, or given levels in dB.
 * Percentiles are shares of 1: a division in double would be a call, and spill. */
struct Scale {
    int kind;
    double low;
    double high;
};

/* The counters of one band. */
struct Tally {
    const Key* extremes;
    const unsigned int* counts;
    long long* narrowed;
    double* levels;
};

__device__ __forceinline__ long long code_of(REAL db)
{
    const REAL half = (REAL)(1ll << (CODE_BITS - 1));
    const REAL scaled = floor(db * (REAL)(1ll << (CODE_BITS - RANGE_BITS)));
    return (long long)fmin(fmax(scaled, -half), half - 1) + (1ll << (CODE_BITS - 1));
}

/* The middle of a code's dB. */
__device__ __forceinline__ double db_of(long long code)
{
    return ((double)(code - (1ll << (CODE_BITS - 1))) + 0.5) / (1ll << (CODE_BITS - RANGE_BITS));
}

/* The code's leading digits after `round` rounds beyond the coarse one. */
__device__ __forceinline__ long long digits_of(long long code, int round)
{
    return code >> (CODE_BITS - DIGIT_BITS * (1 + round));
}

/* Elements of the band's live channels. */
__device__ __forceinline__ long long population(
    const int* facts, int band, int band_channels, int samples)
{
    return (long long)(band_channels - facts[FACTS + band]) * samples;
}

/* A band's digits and ranks after a round. */
__device__ __forceinline__ long long* after_round(long long* narrowed, int round)
{
    return narrowed + 2 * STATISTICS * round;
}

/* The statistic whose table statistic `number` shares. */
__device__ __forceinline__ int shared_table(const long long* found, int number)
{
    int first = 0;
    while (found[2 * first] != found[2 * number]) ++first;
    return first;
}

/* Shared memory in which the threads of a block tell each other what they found. */
struct Room {
    unsigned int of_warp[THREADS / WARP];
    long long bin;
    long long rest;
    int last;
};

/* Whether this block is the last of its band to come here, so that all counters are complete. */
__device__ __forceinline__ bool last_to_finish(Room& room, unsigned int* ticket, int blocks)
{
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) room.last = atomicAdd(ticket, 1u) + 1 == (unsigned int)blocks;
    __syncthreads();
    if (room.last) __threadfence();
    return room.last;
}

/* Find the bin of a table that holds the element of this rank, and the rank within the bin.
 *
 * A warp has 16 times 32 bins next to each other. Counters are read as volatile: other blocks have
 * added to them, beyond this one's cache.
 */
__device__ __forceinline__ void find_bin(
    Room& room, const volatile unsigned int* table, long long rank, long long& bin, long long& rest)
{
    const int share = BINS / THREADS;
    const int lane = threadIdx.x % WARP;
    const int own = threadIdx.x / WARP;
    const int first = own * share * WARP + lane;
    unsigned int total = 0;
    for (int i = 0; i < share; ++i) total += table[first + i * WARP];
    total = warp_all(total, Sum<unsigned int>());
    if (lane == 0) room.of_warp[own] = total;
    __syncthreads();
    long long before = 0;
    for (int warp = 0; warp < own; ++warp) before += room.of_warp[warp];
    if (before <= rank && rank < before + total) {
#pragma unroll 1
        for (int i = 0; i < share; ++i) {
            const unsigned int mine = table[first + i * WARP];
            const long long below = before + warp_running_sum(mine) - mine;
            if (below <= rank && rank < below + mine) {
                room.bin = first + i * WARP;
                room.rest = rank - below;
            }
            before += warp_all(mine, Sum<unsigned int>());
        }
    }
    __syncthreads();
    bin = room.bin;
    rest = room.rest;
    __syncthreads();
}

/* Where a percentile, as a share of 1, of n sorted elements lies, counted from 0, between two of them. */
__device__ __forceinline__ double percentile_place(double share, long long n)
{
    return share * (double)(n - 1);
}

/* The rank of one of the four order statistics. */
__device__ __forceinline__ long long rank_of(const Scale& scale, int number, long long n)
{
    const double place = percentile_place(number < 2 ? scale.low : scale.high, n);
    const long long rank = (long long)place + number % 2;
    return rank < n ? rank : n - 1;
}

/* Find the next digit of the four order statistics; called by all threads of one block. */
__device__ __forceinline__ void narrow(
    Room& room, const Tally& tally, const Scale& scale, int round, long long n)
{
    const unsigned int* tables =
        tally.counts + (round == 0 ? 0 : 1 + STATISTICS * (round - 1)) * BINS;
    const long long* before = after_round(tally.narrowed, round - 1);
    long long* after = after_round(tally.narrowed, round);
    for (int number = 0; number < STATISTICS; ++number) {
        const bool known = round > 0;
        const int table = known ? shared_table(before, number) : 0;
        const long long rank = known ? before[2 * number + 1] : rank_of(scale, number, n);
        long long bin;
        long long rest;
        find_bin(room, tables + table * BINS, rank, bin, rest);
        if (threadIdx.x == 0) {
            after[2 * number] = (known ? before[2 * number] << DIGIT_BITS : 0) + bin;
            after[2 * number + 1] = rest;
        }
    }
}

/* Write the band's levels, from its extremes and, for percentiles, from the narrowed codes.
 *
 * As das_gpu.backends.cpu does: -inf of a live channel (an envelope of 0) counts as 200 dB below
 * the maximum, and the maximum as 200 dB where nothing else is there.
 */
__device__ __forceinline__ void settle(const Tally& tally, const Scale& scale, long long n)
{
    if (threadIdx.x != 0) return;
    const volatile Key* extremes = tally.extremes;
    const Key least = extremes[0];
    const Key greatest = extremes[1];
    double low = __longlong_as_double(0x7ff8000000000000ll);
    double high = low;
    double floor_db = __longlong_as_double((long long)0xfff0000000000000ull);
    if (n > 0) {
        REAL lowest = from_key<REAL>(least);
        REAL highest = from_key<REAL>(greatest);
        if (lowest < 0 && !is_finite_key<REAL>(least)) {
            if (!is_finite_key<REAL>(greatest)) highest = (REAL)FLOOR_DB;
            lowest = highest - (REAL)FLOOR_DB;
            floor_db = lowest;
        }
        low = lowest;
        high = highest;
        if (scale.kind == FIXED) {
            low = scale.low;
            high = scale.high;
        } else if (scale.kind == PERCENTILES) {
            const long long* found = after_round(tally.narrowed, (int)ROUNDS);
            double limits[2];
            for (int side = 0; side < 2; ++side) {
                const double place = percentile_place(side == 0 ? scale.low : scale.high, n);
                const double below = db_of(found[4 * side]);
                const double above = db_of(found[4 * side + 2]);
                const double kept_below = fmin(fmax(below, low), high);
                const double kept_above = fmin(fmax(above, low), high);
                limits[side] = kept_below
                    + (place - (double)(long long)place) * (kept_above - kept_below);
            }
            low = limits[0];
            high = limits[1];
        }
    }
    tally.levels[0] = low;
    tally.levels[1] = high;
    tally.levels[2] = floor_db;
}
