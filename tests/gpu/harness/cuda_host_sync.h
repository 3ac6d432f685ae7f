// Barriers, votes and shuffles. Each is a function that knows the line it was called from, because
// all threads that meet must have called the same one.
//
// Stricter than the hardware: a warp collective's mask must name exactly lanes that exist, have
// not exited and call the same function on the same line with the same mask, and a shuffle must
// read from a lane in the mask. As on the hardware (compute capability 7.0 and later), a block
// barrier waits for the threads that have not exited.
#pragma once

#define CUDA_HOST_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define CUDA_HOST_HERE cuda_host::Place{file, line}

static inline void __syncthreads(CUDA_HOST_PLACE) {
    cuda_host::block_wait(cuda_host::Operation::barrier, 0, CUDA_HOST_HERE);
}
static inline int __syncthreads_or(int predicate, CUDA_HOST_PLACE) {
    return cuda_host::block_wait(cuda_host::Operation::barrier_or, predicate != 0, CUDA_HOST_HERE);
}
static inline int __syncthreads_and(int predicate, CUDA_HOST_PLACE) {
    return cuda_host::block_wait(cuda_host::Operation::barrier_and, predicate != 0, CUDA_HOST_HERE);
}
static inline int __syncthreads_count(int predicate, CUDA_HOST_PLACE) {
    return cuda_host::block_wait(cuda_host::Operation::barrier_count, predicate != 0, CUDA_HOST_HERE);
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_HOST_PLACE) {
    cuda_host::warp_wait(cuda_host::Operation::syncwarp, mask, 0, 0, 32, CUDA_HOST_HERE);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_HOST_PLACE) {
    return (unsigned)cuda_host::warp_wait(
        cuda_host::Operation::ballot, mask, predicate != 0, 0, 32, CUDA_HOST_HERE);
}
static inline int __any_sync(unsigned mask, int predicate, CUDA_HOST_PLACE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, CUDA_HOST_PLACE) {
    return __ballot_sync(mask, predicate, file, line) == mask;
}
static inline unsigned __activemask() { return cuda_host::live_lanes(); }

namespace cuda_host {
template <class T>
static inline T shuffle(Operation operation, unsigned mask, T value, int argument, int width, Place place) {
    static_assert(sizeof(T) <= 8 && std::is_arithmetic_v<T>, "a shuffle carries one number");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = warp_wait(operation, mask, bits, argument, width, place);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
}  // namespace cuda_host

#define CUDA_HOST_SHUFFLE(name, operation)                                                    \
    template <class T>                                                                        \
    static inline T name(unsigned mask, T value, int argument, int width = 32, CUDA_HOST_PLACE) { \
        return cuda_host::shuffle(                                                            \
            cuda_host::Operation::operation, mask, value, argument, width, CUDA_HOST_HERE);   \
    }
CUDA_HOST_SHUFFLE(__shfl_sync, shuffle)
CUDA_HOST_SHUFFLE(__shfl_up_sync, shuffle_up)
CUDA_HOST_SHUFFLE(__shfl_down_sync, shuffle_down)
CUDA_HOST_SHUFFLE(__shfl_xor_sync, shuffle_xor)
#undef CUDA_HOST_SHUFFLE

#define CUDA_HOST_REDUCE(name, T, combine)                                             \
    static inline T name(unsigned mask, T value, CUDA_HOST_PLACE) {                    \
        T result = value;                                                              \
        for (int lane = 0, first = 1; lane < 32; lane++) {                             \
            if (!(mask >> lane & 1)) continue;                                         \
            const T other = __shfl_sync(mask, value, lane, 32, file, line);            \
            result = first ? other : (combine);                                        \
            first = 0;                                                                 \
        }                                                                              \
        return result;                                                                 \
    }
CUDA_HOST_REDUCE(__reduce_add_sync, unsigned, result + other)
CUDA_HOST_REDUCE(__reduce_min_sync, unsigned, other < result ? other : result)
CUDA_HOST_REDUCE(__reduce_max_sync, unsigned, other > result ? other : result)
CUDA_HOST_REDUCE(__reduce_or_sync, unsigned, result | other)
CUDA_HOST_REDUCE(__reduce_and_sync, unsigned, result & other)
#undef CUDA_HOST_REDUCE

static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
