// CUDA's intrinsics in terms of the C library. Conversions saturate and turn NaN into 0, and the
// functions named _rn and so on are never contracted into fused multiply-adds, as on a GPU.
#pragma once

// Bits.
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; bit++) reversed |= (x >> bit & 1u) << (31 - bit);
    return reversed;
}
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((unsigned long long)high << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31));
}

#define CUDA_HOST_BITS(name, from, to)       \
    static inline to name(from value) {      \
        to bits;                             \
        memcpy(&bits, &value, sizeof bits);  \
        return bits;                         \
    }
CUDA_HOST_BITS(__float_as_int, float, int)
CUDA_HOST_BITS(__float_as_uint, float, unsigned)
CUDA_HOST_BITS(__int_as_float, int, float)
CUDA_HOST_BITS(__uint_as_float, unsigned, float)
CUDA_HOST_BITS(__double_as_longlong, double, long long)
CUDA_HOST_BITS(__longlong_as_double, long long, double)
#undef CUDA_HOST_BITS
static inline int __double2hiint(double x) { return (int)(__double_as_longlong(x) >> 32); }
static inline int __double2loint(double x) { return (int)__double_as_longlong(x); }
static inline double __hiloint2double(int high, int low) {
    return __longlong_as_double((long long)((unsigned long long)(unsigned)high << 32 | (unsigned)low));
}

// Conversions.
namespace cuda_host {
template <class To>
static inline To saturate(double x) {
    // 2^(bits) of the target, exact in double even where its maximum is not.
    const double beyond = ldexp(1.0, (int)sizeof(To) * 8 - (std::is_signed_v<To> ? 1 : 0));
    constexpr To low = std::is_signed_v<To> ? (To)((std::make_unsigned_t<To>)1 << (sizeof(To) * 8 - 1)) : 0;
    if (isnan(x)) return 0;
    if (x >= beyond) return (To)~low;
    if (x < (double)low) return low;
    return (To)x;
}
}  // namespace cuda_host
#define CUDA_HOST_CONVERT(from_name, from, to_name, to)                                                \
    static inline to __##from_name##2##to_name##_rn(from x) { return cuda_host::saturate<to>(nearbyint((double)x)); } \
    static inline to __##from_name##2##to_name##_rz(from x) { return cuda_host::saturate<to>(trunc((double)x)); }     \
    static inline to __##from_name##2##to_name##_rd(from x) { return cuda_host::saturate<to>(floor((double)x)); }     \
    static inline to __##from_name##2##to_name##_ru(from x) { return cuda_host::saturate<to>(ceil((double)x)); }
CUDA_HOST_CONVERT(float, float, int, int)
CUDA_HOST_CONVERT(float, float, uint, unsigned)
CUDA_HOST_CONVERT(float, float, ll, long long)
CUDA_HOST_CONVERT(float, float, ull, unsigned long long)
CUDA_HOST_CONVERT(double, double, int, int)
CUDA_HOST_CONVERT(double, double, uint, unsigned)
CUDA_HOST_CONVERT(double, double, ll, long long)
CUDA_HOST_CONVERT(double, double, ull, unsigned long long)
#undef CUDA_HOST_CONVERT
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __ll2float_rn(long long x) { return (float)x; }
static inline double __int2double_rn(int x) { return (double)x; }
static inline double __uint2double_rn(unsigned x) { return (double)x; }
static inline double __ll2double_rn(long long x) { return (double)x; }
static inline float __double2float_rn(double x) { return (float)x; }

// Arithmetic rounded once, each operation on its own.
namespace cuda_host {
template <class T>
static inline T alone(T x) {
    __asm__("" : "+m"(x));  // the compiler may not look through, hence not contract
    return x;
}
}  // namespace cuda_host
static inline float __fadd_rn(float a, float b) { return cuda_host::alone(a + b); }
static inline float __fsub_rn(float a, float b) { return cuda_host::alone(a - b); }
static inline float __fmul_rn(float a, float b) { return cuda_host::alone(a * b); }
static inline float __fdiv_rn(float a, float b) { return cuda_host::alone(a / b); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __frcp_rn(float a) { return cuda_host::alone(1.0f / a); }
static inline float __fsqrt_rn(float a) { return cuda_host::alone(sqrtf(a)); }
static inline double __dadd_rn(double a, double b) { return cuda_host::alone(a + b); }
static inline double __dsub_rn(double a, double b) { return cuda_host::alone(a - b); }
static inline double __dmul_rn(double a, double b) { return cuda_host::alone(a * b); }
static inline double __ddiv_rn(double a, double b) { return cuda_host::alone(a / b); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline double __dsqrt_rn(double a) { return cuda_host::alone(sqrt(a)); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
// The fast versions, as exact as the C library has them (it declares some of these names itself).
static inline float __fdividef(float a, float b) { return a / b; }
#define __log10f log10f
#define __log2f log2f
#define __logf logf
#define __expf expf
static inline float __saturatef(float x) { return isnan(x) ? 0.0f : x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }

// CUDA's overloads: of a number and NaN the number, of mixed integers the common type.
template <class A, class B>
static inline std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_same_v<T, float>) return fminf(a, b);
    else if constexpr (std::is_floating_point_v<T>) return fmin((T)a, (T)b);
    else return (T)b < (T)a ? (T)b : (T)a;
}
template <class A, class B>
static inline std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_same_v<T, float>) return fmaxf(a, b);
    else if constexpr (std::is_floating_point_v<T>) return fmax((T)a, (T)b);
    else return (T)a < (T)b ? (T)b : (T)a;
}

// Loads with a cache hint are loads.
#define CUDA_HOST_LOAD(name)                        \
    template <class T>                              \
    static inline T name(const T *address) {        \
        return *address;                            \
    }
CUDA_HOST_LOAD(__ldg)
CUDA_HOST_LOAD(__ldcg)
CUDA_HOST_LOAD(__ldca)
CUDA_HOST_LOAD(__ldcs)
CUDA_HOST_LOAD(__ldlu)
CUDA_HOST_LOAD(__ldcv)
#undef CUDA_HOST_LOAD
#define CUDA_HOST_STORE(name)                                           \
    template <class T>                                                  \
    static inline void name(T *address, cuda_host::same<T> value) {     \
        *address = value;                                               \
    }
CUDA_HOST_STORE(__stwb)
CUDA_HOST_STORE(__stcg)
CUDA_HOST_STORE(__stcs)
CUDA_HOST_STORE(__stwt)
#undef CUDA_HOST_STORE
