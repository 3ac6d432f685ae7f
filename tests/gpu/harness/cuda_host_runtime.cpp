// Executes a kernel block by block, every CUDA thread a fiber.
//
// The scheduler resumes each thread that can run, in the order of the schedule, until it waits or
// exits; then it lets warp collectives and the block's barrier happen when all that must meet have
// met, and reports those that never can. Fibers live on between blocks and launches: a thread
// costs two switches and no system call.
//
// Compiled without instrumentation, once for fibers only and once (CUDA_HOST_TSAN) so that
// ThreadSanitizer knows every fiber as a thread of its own: switching orders nothing, a barrier
// orders the threads of the block, __syncwarp those in its mask; shuffles and votes order nothing,
// as the CUDA C++ Programming Guide says of them.
#include "cuda_host_runtime.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <vector>

#ifdef CUDA_HOST_TSAN
extern "C" {
void *__tsan_get_current_fiber();
void *__tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void *, unsigned);
void __tsan_acquire(void *);
void __tsan_release(void *);
}
#endif

namespace cuda_host {

uint3 thread_index, block_index;
dim3 block_dim, grid_dim;
unsigned char *dynamic_shared;

// Called where threads have met, so that counters may group what they did before.
void (*on_meeting)(unsigned first_lane, unsigned lanes) = nullptr;
void (*on_block_end)(unsigned threads) = nullptr;
unsigned current_lane, current_block;

namespace {

constexpr size_t stack_bytes = 128 << 10;
constexpr size_t most_shared = 232448;  // bytes a block may have, compute capability 9.0
constexpr size_t page = 4096;
constexpr uint64_t untouched = 0x7c3fd1a5e92b6840;
constexpr unsigned most_threads = 1024;

enum class State { ready, in_warp, in_block, exited };

// Where a fiber, or the scheduler, goes on. _setjmp and _longjmp switch without a system call;
// ThreadSanitizer does not let them leave the stack.
struct Context {
#ifdef CUDA_HOST_TSAN
    ucontext_t saved;
#else
    jmp_buf saved;
#endif
};

struct Fiber {
    Context context;
    State state;
    Operation operation;
    Place place;
    unsigned mask;
    uint64_t value, result;
    int argument, width;
    void *sanitizer;
    unsigned char meetings[32];  // by hash of the mask: which of two tokens the next __syncwarp uses
};

Fiber fibers[most_threads];
unsigned fiber_count = 0;  // fibers that exist, parked and ready for a thread
Context scheduler;
ucontext_t creation;
char *stacks = nullptr;
unsigned stack_count = 0;
unsigned char *shared_pages = nullptr;
void *scheduler_sanitizer;
unsigned char block_tokens[2], warp_tokens[32][32][2], begin_token, end_token;
unsigned block_meetings;

Request *request;
void (*kernel_body)(void **);
bool has_failed;
unsigned threads;

sigjmp_buf fault_jump;
timer_t watchdog;

void acquire(void *token) {
#ifdef CUDA_HOST_TSAN
    __tsan_acquire(token);
#else
    (void)token;
#endif
}

void release(void *token) {
#ifdef CUDA_HOST_TSAN
    __tsan_release(token);
#else
    (void)token;
#endif
}

__attribute__((noinline)) void switch_context(Context *from, Context *to) {
#ifdef CUDA_HOST_TSAN
    swapcontext(&from->saved, &to->saved);
#else
    if (_setjmp(from->saved) == 0) _longjmp(to->saved, 1);
#endif
}

void to_scheduler(Fiber *fiber) {
#ifdef CUDA_HOST_TSAN
    __tsan_switch_to_fiber(scheduler_sanitizer, 1);
#endif
    switch_context(&fiber->context, &scheduler);
}

void to_fiber(unsigned lane) {
    Fiber *fiber = &fibers[lane];
    current_lane = lane;
    thread_index = {
        lane % block_dim.x, lane / block_dim.x % block_dim.y, lane / (block_dim.x * block_dim.y)};
#ifdef CUDA_HOST_TSAN
    __tsan_switch_to_fiber(fiber->sanitizer, 1);
#endif
    switch_context(&scheduler, &fiber->context);
}

// A fiber parks itself when it is made, and executes one thread each time it is resumed.
void live() {
    Fiber *fiber = &fibers[current_lane];
    for (;;) {
        to_scheduler(fiber);
        acquire(&begin_token);
        kernel_body(request->arguments);
        fiber->state = State::exited;
        release(&end_token);
    }
}

// One mapping for all stacks: a page without access under each would use up, over many kernels,
// the number of mappings that a process may have. A word at each stack's end is looked at instead.
bool map_stacks() {
    if (threads <= stack_count) return true;
    if (stacks) munmap(stacks, stack_count * stack_bytes);
    fiber_count = stack_count = 0;
    void *mapped = mmap(
        nullptr, threads * stack_bytes, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    stacks = mapped == MAP_FAILED ? nullptr : static_cast<char *>(mapped);
    if (!stacks) return false;
    stack_count = threads;
    return true;
}

uint64_t *stack_end(unsigned lane) {
    return reinterpret_cast<uint64_t *>(stacks + lane * stack_bytes);
}

__attribute__((noinline)) void make_fiber(unsigned lane) {
    *stack_end(lane) = untouched;
    current_lane = lane;
    getcontext(&creation);
    creation.uc_stack.ss_sp = stacks + lane * stack_bytes;
    creation.uc_stack.ss_size = stack_bytes;
    creation.uc_link = nullptr;
    makecontext(&creation, live, 0);
#ifdef CUDA_HOST_TSAN
    fibers[lane].sanitizer = __tsan_create_fiber(0);
    __tsan_switch_to_fiber(fibers[lane].sanitizer, 1);
#endif
#ifdef CUDA_HOST_TSAN
    swapcontext(&scheduler.saved, &creation);
#else
    if (_setjmp(scheduler.saved) == 0) setcontext(&creation);
#endif
}

void make_fibers() {
#ifdef CUDA_HOST_TSAN
    scheduler_sanitizer = __tsan_get_current_fiber();
#endif
    for (; fiber_count < threads; fiber_count++) make_fiber(fiber_count);
}

void record(const char *format, va_list values) {
    if (has_failed) return;
    has_failed = true;
    vsnprintf(request->message, sizeof request->message, format, values);
    request->thread[0] = thread_index.x;
    request->thread[1] = thread_index.y;
    request->thread[2] = thread_index.z;
}

// A fault found by the scheduler, between threads.
__attribute__((format(printf, 1, 2))) void report(const char *format, ...) {
    va_list values;
    va_start(values, format);
    record(format, values);
    va_end(values);
}

const char *file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

const char *name_of(Operation operation) {
    static const char *const names[] = {
        "__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count", "__syncwarp",
        "a vote", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
    return names[static_cast<int>(operation)];
}

bool same_call(const Fiber &a, const Fiber &b) {
    return a.operation == b.operation && a.place.line == b.place.line &&
           strcmp(a.place.file, b.place.file) == 0;
}

// Whether all lanes in the fiber's mask wait in the same call; faults when they never can.
bool mask_has_met(unsigned warp, const Fiber &fiber) {
    bool met = true;
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(fiber.mask >> lane & 1)) continue;
        const char *what = name_of(fiber.operation);
        const char *file = file_name(fiber.place.file);
        if (warp + lane >= threads) {
            report("%s:%d: the mask of %s names lane %u, which the block does not have", file,
                   fiber.place.line, what, lane);
            return false;
        }
        const Fiber &other = fibers[warp + lane];
        if (other.state == State::exited) {
            report("%s:%d: the mask of %s names lane %u, which has exited", file, fiber.place.line,
                   what, lane);
            return false;
        }
        if (other.state == State::in_block) {
            report("%s:%d: %s waits for lane %u, which waits in %s at line %d", file, fiber.place.line,
                   what, lane, name_of(other.operation), other.place.line);
            return false;
        }
        if (other.state == State::ready) {
            met = false;
        } else if (!same_call(fiber, other) || other.mask != fiber.mask) {
            report("%s:%d: %s with mask %08x waits for lane %u, which is in %s with mask %08x at line %d",
                   file, fiber.place.line, what, fiber.mask, lane, name_of(other.operation), other.mask,
                   other.place.line);
            return false;
        }
    }
    return met;
}

// The lane that a shuffle reads, as the CUDA C++ Programming Guide defines it.
int shuffle_source(const Fiber &fiber, int lane) {
    const int first = lane & ~(fiber.width - 1), end = first + fiber.width;
    switch (fiber.operation) {
        case Operation::shuffle: return first + (fiber.argument & (fiber.width - 1));
        case Operation::shuffle_up: return lane - fiber.argument < first ? lane : lane - fiber.argument;
        case Operation::shuffle_down: return lane + fiber.argument >= end ? lane : lane + fiber.argument;
        case Operation::shuffle_xor: {
            const int source = lane ^ fiber.argument;
            return source >= end ? lane : source;
        }
        default: return lane;
    }
}

bool complete(unsigned warp, const Fiber &leader) {
    const unsigned mask = leader.mask;
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        if (mask >> lane & 1 && fibers[warp + lane].value) votes |= 1u << lane;
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        Fiber &fiber = fibers[warp + lane];
        const int source = shuffle_source(fiber, static_cast<int>(lane));
        if (source < 0 || source > 31 || !(mask >> source & 1)) {
            report("%s:%d: lane %u reads lane %d in %s, which is not in the mask %08x",
                   file_name(fiber.place.file), fiber.place.line, lane, source, name_of(fiber.operation),
                   mask);
            return false;
        }
        fiber.result = fiber.operation == Operation::ballot ? votes : fibers[warp + source].value;
    }
    if (on_meeting) on_meeting(warp, mask);
    for (unsigned lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) fibers[warp + lane].state = State::ready;
    request->collectives++;
    return true;
}

// Let the warp's collectives happen whose lanes have all arrived.
bool advance_warp(unsigned warp) {
    bool progress = false;
    for (unsigned lane = 0; lane < 32 && warp + lane < threads; lane++) {
        const Fiber &fiber = fibers[warp + lane];
        if (fiber.state != State::in_warp) continue;
        if (mask_has_met(warp, fiber)) progress |= complete(warp, fiber);
        if (has_failed) return false;
    }
    return progress;
}

// Let the block's barrier happen when every thread that has not exited waits there.
bool advance_block() {
    const Fiber *first = nullptr;
    unsigned waiting = 0, exited = 0, votes = 0;
    for (unsigned lane = 0; lane < threads; lane++) {
        const Fiber &fiber = fibers[lane];
        exited += fiber.state == State::exited;
        if (fiber.state != State::in_block) continue;
        if (first && !same_call(*first, fiber)) {
            report("threads of one block wait at different barriers: %s at %s:%d and %s at %s:%d",
                   name_of(first->operation), file_name(first->place.file), first->place.line,
                   name_of(fiber.operation), file_name(fiber.place.file), fiber.place.line);
            return false;
        }
        if (!first) first = &fiber;
        waiting++;
        votes += fiber.value != 0;
    }
    if (waiting == 0 || waiting + exited < threads) return false;
    if (on_meeting)
        for (unsigned warp = 0; warp < threads; warp += 32) on_meeting(warp, 0xffffffffu);
    for (unsigned lane = 0; lane < threads; lane++) {
        Fiber &fiber = fibers[lane];
        if (fiber.state != State::in_block) continue;
        fiber.result = fiber.operation == Operation::barrier_or    ? votes != 0
                       : fiber.operation == Operation::barrier_and ? votes == waiting
                                                                   : votes;
        fiber.state = State::ready;
    }
    block_meetings++;
    request->barriers++;
    return true;
}

uint32_t random_state;

uint32_t random_below(uint32_t bound) {  // xorshift32
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state % bound;
}

// The indices 0 to n-1 in the order of the schedule.
void arrange(std::vector<uint32_t> &order, uint32_t n) {
    order.resize(n);
    for (uint32_t i = 0; i < n; i++) order[i] = request->schedule == 1 ? n - 1 - i : i;
    if (request->schedule == 2)
        for (uint32_t i = n; i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
}

void run_block(std::vector<uint32_t> &order) {
    for (unsigned lane = 0; lane < threads; lane++) {
        fibers[lane].state = State::ready;
        memset(fibers[lane].meetings, 0, sizeof fibers[lane].meetings);
    }
    release(&begin_token);
    if (request->schedule != 2) arrange(order, threads);
    for (;;) {
        if (request->schedule == 2) arrange(order, threads);
        bool progress = false;
        unsigned exited = 0;
        for (uint32_t lane : order) {
            if (fibers[lane].state != State::ready) continue;
            to_fiber(lane);
            progress = true;
            if (has_failed) return;
        }
        for (unsigned warp = 0; warp < threads; warp += 32) {
            progress |= advance_warp(warp);
            if (has_failed) return;
        }
        progress |= advance_block();
        if (has_failed) return;
        for (unsigned lane = 0; lane < threads; lane++) exited += fibers[lane].state == State::exited;
        if (exited == threads) break;
        if (!progress) {
            report("deadlock: %u of %u threads have exited, the others wait for each other", exited, threads);
            return;
        }
    }
    acquire(&end_token);
    for (unsigned lane = 0; lane < threads; lane++)
        if (*stack_end(lane) != untouched) report("thread %u needs more than %zu bytes of stack", lane, stack_bytes);
    if (on_block_end) on_block_end(threads);
}

void run_grid(unsigned char *shared_begin, unsigned char *shared_end) {
    const uint64_t blocks = (uint64_t)grid_dim.x * grid_dim.y * grid_dim.z;
    std::vector<uint32_t> block_order, thread_order;
    arrange(block_order, static_cast<uint32_t>(blocks));
    for (uint32_t block : block_order) {
        block_index = {
            block % grid_dim.x, block / grid_dim.x % grid_dim.y, block / (grid_dim.x * grid_dim.y)};
        current_block = block;
        memset(shared_begin, static_cast<int>(request->poison), shared_end - shared_begin);
        memset(dynamic_shared, static_cast<int>(request->poison), request->shared_bytes);
        run_block(thread_order);
        if (has_failed) return;
    }
}

// Dynamic shared memory ends at an unreadable page, on 16 bytes, and begins after another.
bool map_dynamic_shared() {
    const size_t room = (most_shared + page - 1) / page * page;
    if (!shared_pages) {
        void *mapped = mmap(
            nullptr, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED) return false;
        shared_pages = static_cast<unsigned char *>(mapped);
    }
    unsigned char *end = shared_pages + page + room;
    const size_t bytes = (request->shared_bytes + 15) / 16 * 16;
    const size_t mapped = (bytes + page - 1) / page * page;
    mprotect(shared_pages, page + room, PROT_NONE);
    if (mapped) mprotect(end - mapped, mapped, PROT_READ | PROT_WRITE);
    dynamic_shared = end - bytes;
    return true;
}

void on_signal(int number, siginfo_t *info, void *context) {
    request->fault_address = reinterpret_cast<uint64_t>(info->si_addr);
#if defined(__x86_64__)
    request->fault_is_write =
        static_cast<ucontext_t *>(context)->uc_mcontext.gregs[REG_ERR] >> 1 & 1;
#endif
    siglongjmp(fault_jump, number);
}

const int caught[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};

// Catches faults and overlong execution of the calling thread for as long as it lives.
class Guard {
public:
    explicit Guard(uint32_t limit_s) {
        stack_t own{};
        own.ss_sp = alternate;
        own.ss_size = sizeof alternate;
        sigaltstack(&own, &old_stack);
        struct sigaction action {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < 4; i++) sigaction(caught[i], &action, &old[i]);
        sigaction(SIGRTMIN + 5, &action, &old[4]);
        sigevent event{};
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN + 5;
        event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
        has_timer = timer_create(CLOCK_MONOTONIC, &event, &watchdog) == 0;
        itimerspec when{};
        when.it_value.tv_sec = limit_s;
        if (has_timer) timer_settime(watchdog, 0, &when, nullptr);
    }
    ~Guard() {
        if (has_timer) timer_delete(watchdog);
        for (int i = 0; i < 4; i++) sigaction(caught[i], &old[i], nullptr);
        sigaction(SIGRTMIN + 5, &old[4], nullptr);
        sigaltstack(&old_stack, nullptr);
    }

private:
    stack_t old_stack;
    struct sigaction old[5];
    bool has_timer;
    char alternate[65536];
};

}  // namespace

unsigned block_wait(Operation operation, unsigned predicate, Place place) {
    Fiber *fiber = &fibers[current_lane];
    fiber->state = State::in_block;
    fiber->operation = operation;
    fiber->place = place;
    fiber->value = predicate;
    unsigned char *token = &block_tokens[block_meetings & 1];
    release(token);
    to_scheduler(fiber);
    acquire(token);
    return static_cast<unsigned>(fiber->result);
}

uint64_t warp_wait(
    Operation operation, unsigned mask, uint64_t value, int argument, int width, Place place) {
    const unsigned lane = current_lane & 31;
    if (!(mask >> lane & 1))
        fail("%s:%d: lane %u calls %s with mask %08x, which does not name it", file_name(place.file),
             place.line, lane, name_of(operation), mask);
    if (width < 1 || width > 32 || (width & (width - 1)))
        fail("%s:%d: %s with width %d, not a power of two up to 32", file_name(place.file), place.line,
             name_of(operation), width);
    Fiber *fiber = &fibers[current_lane];
    fiber->state = State::in_warp;
    fiber->operation = operation;
    fiber->place = place;
    fiber->mask = mask;
    fiber->value = value;
    fiber->argument = argument;
    fiber->width = width;
    if (operation != Operation::syncwarp) {
        to_scheduler(fiber);
        return fiber->result;
    }
    // Two tokens in turn for each mask: a lane that is already in the next meeting must not seem
    // to have met one that is only leaving this one.
    const unsigned slot = mask * 2654435761u >> 27;
    unsigned char *token = &warp_tokens[current_lane >> 5][slot][fiber->meetings[slot]++ & 1];
    release(token);
    to_scheduler(fiber);
    acquire(token);
    return fiber->result;
}

unsigned live_lanes() {
    const unsigned warp = current_lane & ~31u;
    unsigned mask = 0;
    for (unsigned lane = 0; lane < 32 && warp + lane < threads; lane++)
        if (fibers[warp + lane].state != State::exited) mask |= 1u << lane;
    return mask;
}

void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    record(format, values);
    va_end(values);
    to_scheduler(&fibers[current_lane]);
    __builtin_unreachable();
}

int run(Request *asked, void (*body)(void **), unsigned char *shared_begin, unsigned char *shared_end) {
    request = asked;
    kernel_body = body;
    has_failed = false;
    threads = asked->block[0] * asked->block[1] * asked->block[2];
    block_dim = dim3(asked->block[0], asked->block[1], asked->block[2]);
    grid_dim = dim3(asked->grid[0], asked->grid[1], asked->grid[2]);
    random_state = asked->seed * 2654435761u | 1u;
    if (!map_dynamic_shared() || !map_stacks()) {
        report("no memory for the threads' stacks");
        return failed;
    }
#if defined(__x86_64__)
    const unsigned control = _mm_getcsr();
    if (asked->flush) _mm_setcsr(control | 0x8040);  // flush results to zero, take operands as zero
#endif
    make_fibers();
    volatile int outcome = finished;
#ifdef CUDA_HOST_TSAN
    run_grid(shared_begin, shared_end);
#else
    Guard guard(asked->limit_s);
    const int number = sigsetjmp(fault_jump, 1);
    if (number == 0) {
        run_grid(shared_begin, shared_end);
    } else {
        outcome = number == SIGFPE || number == SIGILL ? arithmetic
                  : number == SIGSEGV || number == SIGBUS ? faulted
                                                          : overdue;
        asked->thread[0] = thread_index.x;
        asked->thread[1] = thread_index.y;
        asked->thread[2] = thread_index.z;
    }
#endif
    if (has_failed) outcome = failed;
    if (outcome != finished) fiber_count = 0;  // threads were left in the middle
    asked->at_block[0] = block_index.x;
    asked->at_block[1] = block_index.y;
    asked->at_block[2] = block_index.z;
#if defined(__x86_64__)
    _mm_setcsr(control);
#endif
    return outcome;
}

}  // namespace cuda_host
