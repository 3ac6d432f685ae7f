// Atomic operations, as real ones: ThreadSanitizer must see them as such. All are relaxed, as on a
// GPU: they order nothing but themselves.
#pragma once

// When accesses are counted, an atomic operation is told to the counters once, instead of by the
// reads and writes it is made of.
#ifdef CUDA_HOST_COUNTED
#define CUDA_HOST_ATOMIC __attribute__((noinline, no_sanitize("thread")))
#define CUDA_HOST_COUNT(address) cuda_host::count_atomic(address, sizeof *(address))
#else
#define CUDA_HOST_ATOMIC inline
#define CUDA_HOST_COUNT(address) ((void)0)
#endif

namespace cuda_host {
template <class T>
struct Same {
    using type = T;
};
// The value's type follows the address's, so that literals convert as in CUDA's overloads.
template <class T>
using same = typename Same<T>::type;

template <class T>
constexpr bool atomic_type = (std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8)) ||
                             std::is_same_v<T, float> || std::is_same_v<T, double>;
}  // namespace cuda_host

#define CUDA_HOST_READ_MODIFY_WRITE(name, condition, wanted)                                    \
    template <class T>                                                                          \
    static CUDA_HOST_ATOMIC T name(T *address, cuda_host::same<T> value) {                      \
        static_assert(cuda_host::atomic_type<T> && (condition), "CUDA has no such atomic");     \
        CUDA_HOST_COUNT(address);                                                               \
        T old, next;                                                                            \
        __atomic_load(address, &old, __ATOMIC_RELAXED);                                         \
        do {                                                                                    \
            next = (wanted);                                                                    \
        } while (!__atomic_compare_exchange(                                                    \
            address, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));                  \
        return old;                                                                             \
    }
// Signed sums wrap around on a GPU.
namespace cuda_host {
template <class T>
static inline T wrapping_add(T a, T b) {
    if constexpr (std::is_integral_v<T>) return (T)((std::make_unsigned_t<T>)a + (std::make_unsigned_t<T>)b);
    else return a + b;
}
template <class T>
static inline T wrapping_subtract(T a, T b) {
    return (T)((std::make_unsigned_t<T>)a - (std::make_unsigned_t<T>)b);
}
}  // namespace cuda_host
CUDA_HOST_READ_MODIFY_WRITE(atomicAdd, true, cuda_host::wrapping_add(old, value))
CUDA_HOST_READ_MODIFY_WRITE(atomicSub, std::is_integral_v<T>, cuda_host::wrapping_subtract(old, value))
CUDA_HOST_READ_MODIFY_WRITE(atomicMin, std::is_integral_v<T>, value < old ? value : old)
CUDA_HOST_READ_MODIFY_WRITE(atomicMax, std::is_integral_v<T>, value > old ? value : old)
CUDA_HOST_READ_MODIFY_WRITE(atomicAnd, std::is_integral_v<T>, old & value)
CUDA_HOST_READ_MODIFY_WRITE(atomicOr, std::is_integral_v<T>, old | value)
CUDA_HOST_READ_MODIFY_WRITE(atomicXor, std::is_integral_v<T>, old ^ value)
CUDA_HOST_READ_MODIFY_WRITE(atomicExch, true, value)
CUDA_HOST_READ_MODIFY_WRITE(atomicInc, (std::is_same_v<T, unsigned>), old >= value ? 0u : old + 1u)
CUDA_HOST_READ_MODIFY_WRITE(
    atomicDec, (std::is_same_v<T, unsigned>), old == 0u || old > value ? value : old - 1u)
#undef CUDA_HOST_READ_MODIFY_WRITE

template <class T>
static CUDA_HOST_ATOMIC T atomicCAS(T *address, cuda_host::same<T> compare, cuda_host::same<T> value) {
    static_assert(std::is_integral_v<T> && sizeof(T) >= 2, "CUDA has no such atomic");
    CUDA_HOST_COUNT(address);
    __atomic_compare_exchange(address, &compare, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return compare;
}
