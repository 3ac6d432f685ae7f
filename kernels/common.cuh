/* What the kernels share: the types of real and complex values, keys that order samples as
 * unsigned integers, and reductions over a warp and over a block.
 *
 * Compile-time macros
 *   REAL    float or double: the precision of everything after the detrend.
 *   SAMPLE  the archive's type (only kernels that read the ring).
 *
 * Keys: ordered_key(a) < ordered_key(b) exactly where a < b. -0 and +0 share a key and every NaN
 * has the greatest one, so that order statistics follow NumPy, which sorts NaN last. Keys are made
 * from bit patterns, never by comparing floats: the kernels are compiled with -ftz=true, under
 * which a comparison takes subnormal numbers for zeros. The transformation of IEEE 754 patterns
 * is Michael Herf's, "Radix tricks" (2001): flip the sign bit of non-negative numbers and all
 * bits of negative ones.
 *
 * Reductions need a block of whole warps (a multiple of 32 threads) that arrive together.
 */
#pragma once

#ifndef REAL
#define REAL float
#endif

#define WARP 32
#define EVERY_LANE 0xffffffffu

template <class T> struct ComplexOf;
template <> struct ComplexOf<float> { using type = float2; };
template <> struct ComplexOf<double> { using type = double2; };

/* Laid out as NumPy's complex64 and complex128. */
using Complex = ComplexOf<REAL>::type;

__device__ __forceinline__ Complex make_complex(REAL real, REAL imaginary)
{
    Complex value;
    value.x = real;
    value.y = imaginary;
    return value;
}

/* KeyOf<T>::type: the unsigned type of T's keys. */
template <class T> struct KeyOf { using type = unsigned int; };
template <> struct KeyOf<double> { using type = unsigned long long; };
template <> struct KeyOf<long long> { using type = unsigned long long; };
template <> struct KeyOf<unsigned long long> { using type = unsigned long long; };

__device__ __forceinline__ unsigned int ordered_key(unsigned char x) { return x; }
__device__ __forceinline__ unsigned int ordered_key(unsigned short x) { return x; }
__device__ __forceinline__ unsigned int ordered_key(unsigned int x) { return x; }
__device__ __forceinline__ unsigned long long ordered_key(unsigned long long x) { return x; }

__device__ __forceinline__ unsigned int ordered_key(signed char x)
{
    return (unsigned int)(unsigned char)x ^ 0x80u;
}

__device__ __forceinline__ unsigned int ordered_key(short x)
{
    return (unsigned int)(unsigned short)x ^ 0x8000u;
}

__device__ __forceinline__ unsigned int ordered_key(int x) { return (unsigned int)x ^ 0x80000000u; }

__device__ __forceinline__ unsigned long long ordered_key(long long x)
{
    return (unsigned long long)x ^ 0x8000000000000000ull;
}

__device__ __forceinline__ unsigned int ordered_key(float x)
{
    const unsigned int bits = __float_as_uint(x);
    const unsigned int magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0xffffffffu;
    if (magnitude == 0u) return 0x80000000u;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ unsigned long long ordered_key(double x)
{
    const unsigned long long bits = (unsigned long long)__double_as_longlong(x);
    const unsigned long long magnitude = bits & 0x7fffffffffffffffull;
    if (magnitude > 0x7ff0000000000000ull) return 0xffffffffffffffffull;
    if (magnitude == 0ull) return 0x8000000000000000ull;
    return bits >> 63 ? ~bits : bits | 0x8000000000000000ull;
}

/* from_key<T>(ordered_key(x)) is x; for -0 it is +0, for a NaN it is a NaN. */
template <class T> __device__ __forceinline__ T from_key(typename KeyOf<T>::type key);

template <> __device__ __forceinline__ unsigned char from_key<unsigned char>(unsigned int key)
{
    return (unsigned char)key;
}

template <> __device__ __forceinline__ unsigned short from_key<unsigned short>(unsigned int key)
{
    return (unsigned short)key;
}

template <> __device__ __forceinline__ unsigned int from_key<unsigned int>(unsigned int key)
{
    return key;
}

template <>
__device__ __forceinline__ unsigned long long from_key<unsigned long long>(unsigned long long key)
{
    return key;
}

template <> __device__ __forceinline__ signed char from_key<signed char>(unsigned int key)
{
    return (signed char)(key ^ 0x80u);
}

template <> __device__ __forceinline__ short from_key<short>(unsigned int key)
{
    return (short)(key ^ 0x8000u);
}

template <> __device__ __forceinline__ int from_key<int>(unsigned int key)
{
    return (int)(key ^ 0x80000000u);
}

template <> __device__ __forceinline__ long long from_key<long long>(unsigned long long key)
{
    return (long long)(key ^ 0x8000000000000000ull);
}

template <> __device__ __forceinline__ float from_key<float>(unsigned int key)
{
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

template <> __device__ __forceinline__ double from_key<double>(unsigned long long key)
{
    return __longlong_as_double((long long)(key >> 63 ? key & 0x7fffffffffffffffull : ~key));
}

/* Whether the sample with this key is a number between the infinities. Integers always are. */
template <class T> __device__ __forceinline__ bool is_finite_key(typename KeyOf<T>::type)
{
    return true;
}

template <> __device__ __forceinline__ bool is_finite_key<float>(unsigned int key)
{
    return key > 0x007fffffu && key < 0xff800000u;
}

template <> __device__ __forceinline__ bool is_finite_key<double>(unsigned long long key)
{
    return key > 0x000fffffffffffffull && key < 0xfff0000000000000ull;
}

/* Whether this is the key of a NaN. No integer has one. */
template <class T> __device__ __forceinline__ bool is_nan_key(typename KeyOf<T>::type)
{
    return false;
}

template <> __device__ __forceinline__ bool is_nan_key<float>(unsigned int key)
{
    return key > 0xff800000u;
}

template <> __device__ __forceinline__ bool is_nan_key<double>(unsigned long long key)
{
    return key > 0xfff0000000000000ull;
}

/* How many low bits are needed to write a key: 0 for 0. */
__device__ __forceinline__ int bits_of(unsigned int key) { return 32 - __clz((int)key); }

__device__ __forceinline__ int bits_of(unsigned long long key)
{
    const unsigned int high = (unsigned int)(key >> 32);
    return high != 0u ? 32 + bits_of(high) : bits_of((unsigned int)key);
}

template <class T> struct Least {
    __device__ T operator()(T a, T b) const { return b < a ? b : a; }
};

template <class T> struct Greatest {
    __device__ T operator()(T a, T b) const { return a < b ? b : a; }
};

template <class T> struct Sum {
    __device__ T operator()(T a, T b) const { return a + b; }
};

/* Number of this thread in its block, and threads in the block. */
__device__ __forceinline__ int thread_number()
{
    return (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}

__device__ __forceinline__ int thread_count()
{
    return (int)(blockDim.x * blockDim.y * blockDim.z);
}

/* Combine the values of a warp; every lane gets the result. */
template <class T, class Combine> __device__ __forceinline__ T warp_all(T value, Combine combine)
{
    for (int lane = WARP / 2; lane > 0; lane /= 2)
        value = combine(value, __shfl_xor_sync(EVERY_LANE, value, lane));
    return value;
}

/* Sum of the values of this lane and of the lanes before it. */
template <class T> __device__ __forceinline__ T warp_running_sum(T value)
{
    const int lane = thread_number() % WARP;
    for (int distance = 1; distance < WARP; distance *= 2) {
        const T before = __shfl_up_sync(EVERY_LANE, value, distance);
        if (lane >= distance) value += before;
    }
    return value;
}

/* Combine the values of a block; every thread gets the result.
 *
 * `scratch` is shared memory for 32 values of T. It may be used again at once: the function
 * begins and ends with a barrier.
 */
template <class T, class Combine>
__device__ __forceinline__ T block_all(T value, T* scratch, Combine combine)
{
    const int thread = thread_number();
    const int warps = thread_count() / WARP;
    value = warp_all(value, combine);
    __syncthreads();
    if (thread % WARP == 0) scratch[thread / WARP] = value;
    __syncthreads();
    value = scratch[0];
    for (int warp = 1; warp < warps; ++warp) value = combine(value, scratch[warp]);
    __syncthreads();
    return value;
}
