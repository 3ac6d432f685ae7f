// What code compiled with -fsanitize=undefined calls where C++ leaves the behaviour undefined: the
// first such place is reported as a fault of the kernel.
//
// All of the sanitizer's data structures begin with the place in the source.
#include <stdint.h>
#include <string.h>

#include "cuda_host_runtime.h"

namespace {
struct Source {
    const char *file;
    uint32_t line, column;
};

[[noreturn]] void undefined(const void *data, const char *what) {
    const auto *source = static_cast<const Source *>(data);
    const char *slash = source->file ? strrchr(source->file, '/') : nullptr;
    const char *file = slash ? slash + 1 : source->file ? source->file : "?";
    cuda_host::fail("%s:%u: undefined behaviour: %s", file, source->line, what);
}
}  // namespace

#define HANDLE(name, what)                                                                \
    extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_##name(void *data) { \
        undefined(data, what);                                                            \
    }
HANDLE(add_overflow, "signed addition overflows")
HANDLE(sub_overflow, "signed subtraction overflows")
HANDLE(mul_overflow, "signed multiplication overflows")
HANDLE(negate_overflow, "signed negation overflows")
HANDLE(divrem_overflow, "division by zero or overflow of a division")
HANDLE(shift_out_of_bounds, "shift by a negative or too large count, or of a negative number")
HANDLE(out_of_bounds, "index outside an array")
HANDLE(type_mismatch_v1, "access through a null or misaligned pointer")
HANDLE(pointer_overflow, "pointer arithmetic overflows")
HANDLE(float_cast_overflow, "floating-point number outside the range of the integer it becomes")
HANDLE(load_invalid_value, "value that its type does not have")
HANDLE(vla_bound_not_positive, "array of no size")
HANDLE(builtin_unreachable, "unreachable code reached")
HANDLE(missing_return, "function without a return value")
HANDLE(nonnull_arg, "null pointer given where none may be")
HANDLE(invalid_builtin, "builtin given a value it is not defined for")
