// The entry point of a compiled kernel: its parameter types in words, for the launcher to check
// the arguments against, and a call with the arguments taken from an array of addresses.
#pragma once

#include <stdio.h>

extern "C" unsigned char __start_cuda_host_shared[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char __stop_cuda_host_shared[] __attribute__((weak, visibility("hidden")));

namespace cuda_host {

// A type as NumPy names kinds: i, u, f, b (bool), c (float2, double2), V (another structure), and
// the size in bytes; void is V0.
template <class T>
static int type_words(char *out, size_t room) {
    using U = std::remove_cv_t<T>;
    if constexpr (std::is_void_v<U>) return snprintf(out, room, "V0");
    else {
        constexpr char kind = std::is_same_v<U, bool>                                         ? 'b'
                              : std::is_floating_point_v<U>                                   ? 'f'
                              : std::is_same_v<U, float2> || std::is_same_v<U, double2>       ? 'c'
                              : std::is_integral_v<U> && std::is_signed_v<U>                  ? 'i'
                              : std::is_integral_v<U>                                         ? 'u'
                                                                                              : 'V';
        return snprintf(out, room, "%c%d", kind, (int)sizeof(U));
    }
}

// "*" for a pointer, "*const " for one to constants; parameters are separated by ";".
template <class T>
static void parameter_words(char *out, size_t room) {
    size_t used = strlen(out);
    if constexpr (std::is_pointer_v<T>) {
        using Element = std::remove_pointer_t<T>;
        used += snprintf(out + used, room - used, std::is_const_v<Element> ? "*const " : "*");
        used += type_words<Element>(out + used, room - used);
    } else {
        static_assert(std::is_trivially_copyable_v<T>, "a kernel's parameter is copied by bytes");
        used += type_words<T>(out + used, room - used);
    }
    snprintf(out + used, room - used, ";");
}

template <class... Parameters>
static const char *signature(void (*)(Parameters...)) {
    static char words[1024];
    words[0] = 0;
    (parameter_words<Parameters>(words, sizeof words), ...);
    return words;
}

template <auto kernel>
struct Call;
template <class... Parameters, void (*kernel)(Parameters...)>
struct Call<kernel> {
    template <size_t... i>
    static void with(void **arguments, std::index_sequence<i...>) {
        kernel(*static_cast<Parameters *>(arguments[i])...);
    }
    static void body(void **arguments) { with(arguments, std::index_sequence_for<Parameters...>{}); }
};

}  // namespace cuda_host

#define CUDA_HOST_EXPORT(kernel)                                                                  \
    extern "C" __attribute__((visibility("default"))) int cuda_host_launch(cuda_host::Request *request) { \
        return cuda_host::run(                                                                    \
            request, cuda_host::Call<&kernel>::body, __start_cuda_host_shared, __stop_cuda_host_shared); \
    }                                                                                             \
    extern "C" __attribute__((visibility("default"))) const char *cuda_host_signature() {         \
        return cuda_host::signature(&kernel);                                                     \
    }                                                                                             \
    extern "C" __attribute__((visibility("default"))) int64_t cuda_host_shared_bytes() {          \
        return __stop_cuda_host_shared - __start_cuda_host_shared;                                \
    }
