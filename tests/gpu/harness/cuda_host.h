// CUDA C++ as g++ understands it: included before the unmodified text of a kernel file, so that
// the same text NVRTC compiles for a GPU can be executed on a processor.
//
// Every CUDA thread is a fiber, and one block runs at a time (cuda_host_runtime.cpp). A thread
// runs until it waits at a barrier or in a warp collective; then the next one runs. Only what the
// launcher cannot express in the language itself is changed in the text: `extern __shared__`
// declarations become a pointer to the block's dynamic shared memory (host.py).
//
// Parts: cuda_host_sync.h (barriers, votes, shuffles), cuda_host_atomic.h, cuda_host_math.h
// (intrinsics), cuda_host_launch.h (argument types and the entry point that Python calls).
#pragma once

#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "cuda_host_runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __managed__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// g++ has __restrict__ as a keyword of its own.

// Static shared memory lies in one section of the object, so that it can be poisoned before each
// block and measured.
#define __shared__ static __attribute__((section("cuda_host_shared")))

// The built-in variables. The scheduler writes them before it resumes a thread.
#define threadIdx (static_cast<const uint3 &>(cuda_host::thread_index))
#define blockIdx (static_cast<const uint3 &>(cuda_host::block_index))
#define blockDim (static_cast<const dim3 &>(cuda_host::block_dim))
#define gridDim (static_cast<const dim3 &>(cuda_host::grid_dim))
constexpr int warpSize = 32;

#define CUDA_HOST_VECTOR(base, name, alignment)                                     \
    struct __attribute__((aligned(alignment / 2))) name##1 { base x; };             \
    struct __attribute__((aligned(alignment))) name##2 { base x, y; };              \
    struct name##3 { base x, y, z; };                                               \
    struct __attribute__((aligned(alignment < 16 ? 2 * alignment : 16))) name##4 {  \
        base x, y, z, w;                                                            \
    };                                                                              \
    static inline name##2 make_##name##2(base x, base y) { return {x, y}; }         \
    static inline name##3 make_##name##3(base x, base y, base z) { return {x, y, z}; } \
    static inline name##4 make_##name##4(base x, base y, base z, base w) { return {x, y, z, w}; }
CUDA_HOST_VECTOR(float, float, 8)
CUDA_HOST_VECTOR(double, double, 16)
CUDA_HOST_VECTOR(int, int, 8)
CUDA_HOST_VECTOR(short, short, 4)
CUDA_HOST_VECTOR(unsigned short, ushort, 4)
CUDA_HOST_VECTOR(signed char, char, 2)
CUDA_HOST_VECTOR(unsigned char, uchar, 2)
CUDA_HOST_VECTOR(long long, longlong, 16)
#undef CUDA_HOST_VECTOR
struct __attribute__((aligned(8))) uint2 { unsigned x, y; };
struct __attribute__((aligned(16))) uint4 { unsigned x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

#include "cuda_host_sync.h"
#include "cuda_host_atomic.h"
#include "cuda_host_math.h"
#include "cuda_host_launch.h"
