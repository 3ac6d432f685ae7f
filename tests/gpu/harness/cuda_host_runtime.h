// What the compiled kernel and the runtime that executes it know of each other.
#pragma once

#include <stdint.h>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace cuda_host {

extern uint3 thread_index, block_index;
extern dim3 block_dim, grid_dim;
extern unsigned char *dynamic_shared;

enum class Operation {
    barrier, barrier_or, barrier_and, barrier_count,      // of the block
    syncwarp, ballot, shuffle, shuffle_up, shuffle_down, shuffle_xor,  // of the lanes in a mask
};

// Where in the source a thread waits.
struct Place {
    const char *file;
    int line;
};

// Wait until all threads of the block that have not exited are here; the combined predicate.
unsigned block_wait(Operation operation, unsigned predicate, Place place);
// Wait until all lanes in `mask` are here; what the operation gives this lane.
uint64_t warp_wait(
    Operation operation, unsigned mask, uint64_t value, int argument, int width, Place place);
// Lanes of the caller's warp that have not exited.
unsigned live_lanes();
// Report a fault of the kernel; the thread does not go on.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Tell the counters (when there are any) of an atomic operation.
void count_atomic(const volatile void *address, unsigned bytes);

// One pointer argument, for the counters.
struct Range {
    unsigned char *begin;
    int64_t argument;  // its place among the kernel's parameters
    int64_t bytes;
    int64_t element_bytes;
    int64_t vector;  // elements are structures like float2: their members are accessed together
    int64_t read_bytes, written_bytes, sectors_read, sectors_written, atomics;
};

// What the launcher asks for, and what it is told. Mirrored by host.py's `Request`.
struct Request {
    uint32_t grid[3], block[3];
    uint32_t shared_bytes;
    uint32_t schedule;  // 0 forward, 1 backward, 2 random
    uint32_t seed;
    uint32_t poison;    // byte that fills shared memory before each block
    uint32_t flush;     // flush denormal numbers to zero
    uint32_t limit_s;   // seconds after which the kernel is given up
    void **arguments;
    Range *ranges;
    int64_t range_count;
    // Answers.
    uint32_t thread[3], at_block[3];
    uint64_t fault_address;
    uint32_t fault_is_write;
    int64_t barriers, collectives, shared_atomics;
    char message[512];
};

enum Outcome { finished = 0, failed = 1, faulted = 2, overdue = 3, arithmetic = 4 };

int run(Request *request, void (*body)(void **), unsigned char *shared_begin, unsigned char *shared_end);

}  // namespace cuda_host
