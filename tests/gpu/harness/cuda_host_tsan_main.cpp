// A program that executes one kernel launch under ThreadSanitizer. The launch is a file: the
// request, the number of arguments, for each its kind, bytes and place in the file, and their
// contents, each on a page of its own. Results are left in the file.
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuda_host_runtime.h"

extern "C" int cuda_host_launch(cuda_host::Request *request);

namespace {
struct Argument {
    int64_t kind;  // 0 a value, 1 an array, 2 a null pointer
    int64_t bytes, offset;
};
void *values[256];
void *pointers[256];
}  // namespace

int main(int count, char **words) {
    if (count != 2) return 10;
    const int file = open(words[1], O_RDWR);
    struct stat status;
    if (file < 0 || fstat(file, &status)) return 11;
    void *mapped = mmap(nullptr, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) return 12;
    auto *begin = static_cast<unsigned char *>(mapped);
    auto *request = reinterpret_cast<cuda_host::Request *>(begin);
    const int64_t arguments = *reinterpret_cast<int64_t *>(begin + sizeof *request);
    if (arguments < 0 || arguments > 256) return 13;
    const auto *table = reinterpret_cast<Argument *>(begin + sizeof *request + sizeof arguments);
    for (int64_t i = 0; i < arguments; i++) {
        pointers[i] = table[i].kind == 2 ? nullptr : begin + table[i].offset;
        values[i] = table[i].kind == 0 ? pointers[i] : &pointers[i];
    }
    request->arguments = values;
    const int outcome = cuda_host_launch(request);
    if (outcome) fprintf(stderr, "%s\n", request->message);
    return outcome;
}
