// Counts what the threads of a warp read and write through the kernel's pointer arguments.
//
// The kernel is compiled with -fsanitize=thread, which calls a function before every access to
// memory; these are those functions. They note the place in the code and the bytes. Where lanes
// meet (a barrier, a warp collective, the end of the block) what they noted since their last
// meeting is grouped into warp accesses: the n-th time the lanes executed the same place is one
// access of the warp, and counts the distinct 32-byte sectors it touches. So lanes that diverge
// around an access are still grouped; in a loop that they leave at different times, the n-th
// rounds go together. No cache is modelled. An atomic operation reads and writes its sectors.
//
// A member-wise access to an element like float2 is one access of the whole element, as the
// compiler for the GPU makes it: members next to each other, within the last few accesses.
//
// Also found here: an access outside an argument (exact, on both sides), and one block reading
// or overwriting what another block of the same launch wrote other than atomically.
#include <string.h>

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "cuda_host_runtime.h"

namespace cuda_host {

extern void (*on_meeting)(unsigned first_lane, unsigned lanes);
extern void (*on_block_end)(unsigned threads);
extern unsigned current_lane, current_block;

namespace {

constexpr int64_t sector_bytes = 32;
constexpr int64_t margin = 4096;  // around an argument: the unreadable pages
constexpr uint32_t several = 0xffffffffu;

enum Kind : uint8_t { read, write, atomic };

struct Access {
    uintptr_t place;
    int64_t offset;
    uint32_t bytes;
    uint16_t range;
    Kind kind;
};

struct Grouped {
    uint64_t key;  // place and how often the lane had been there
    int64_t sector;
    uint16_t range;
    Kind kind;
    bool operator<(const Grouped &other) const {
        if (key != other.key) return key < other.key;
        if (kind != other.kind) return kind < other.kind;
        if (range != other.range) return range < other.range;
        return sector < other.sector;
    }
    bool operator==(const Grouped &other) const {
        return key == other.key && kind == other.kind && range == other.range && sector == other.sector;
    }
};

// Blocks (index + 1, or several) that wrote and read an element other than atomically.
struct Element {
    uint32_t writer, reader;
};

Request *counted = nullptr;
std::vector<Access> noted[1024];
std::vector<std::vector<Element>> elements;
std::unordered_map<uintptr_t, uint32_t> places;
std::vector<uint32_t> visits;
std::vector<Grouped> grouped;

void watch_blocks(int64_t index, const Range &range, int64_t offset, int64_t bytes, Kind kind) {
    const uint32_t block = current_block + 1;
    const int64_t size = range.element_bytes;
    for (int64_t i = offset / size; i <= (offset + bytes - 1) / size; i++) {
        Element &element = elements[index][i];
        if (kind == read) {
            if (element.writer != 0 && element.writer != block)
                fail("reads byte %lld of argument %lld, which block %u of the same launch wrote",
                     (long long)offset, (long long)range.argument, element.writer - 1);
            element.reader = element.reader == 0 || element.reader == block ? block : several;
        } else {
            if (element.writer != 0 && element.writer != block)
                fail("writes byte %lld of argument %lld, which block %u of the same launch wrote",
                     (long long)offset, (long long)range.argument, element.writer - 1);
            if (element.reader != 0 && element.reader != block)
                fail("writes byte %lld of argument %lld, which another block of the same launch read",
                     (long long)offset, (long long)range.argument);
            element.writer = block;
        }
    }
}

// Join an access to one the lane made shortly before of another member of the same element.
bool joined(std::vector<Access> &mine, const Range &range, int index, int64_t offset, int64_t bytes, Kind kind) {
    if (!range.vector || bytes >= range.element_bytes) return false;
    const size_t back = std::min<size_t>(mine.size(), 4);
    for (size_t i = 1; i <= back; i++) {
        Access &other = mine[mine.size() - i];
        if (other.range != index || other.kind != kind) continue;
        if (other.offset / range.element_bytes != offset / range.element_bytes) continue;
        if (other.offset + other.bytes == offset || offset + bytes == other.offset) {
            other.offset = std::min(other.offset, offset);
            other.bytes += static_cast<uint32_t>(bytes);
            return true;
        }
    }
    return false;
}

void note(const volatile void *address, int64_t bytes, Kind kind, void *place) {
    if (!counted) return;
    const auto *at = static_cast<const volatile unsigned char *>(address);
    for (int64_t i = 0; i < counted->range_count; i++) {
        Range &range = counted->ranges[i];
        const int64_t offset = at - range.begin;
        if (offset < -margin || offset >= range.bytes + margin) continue;
        if (offset < 0 || offset + bytes > range.bytes)
            fail("%s byte %lld of argument %lld, which has %lld bytes", kind == read ? "reads" : "writes",
                 (long long)offset, (long long)range.argument, (long long)range.bytes);
        if (kind == atomic) range.atomics++;
        if (kind == read) range.read_bytes += bytes;
        if (kind == write) range.written_bytes += bytes;
        if (kind != atomic) watch_blocks(i, range, offset, bytes, kind);
        std::vector<Access> &mine = noted[current_lane];
        if (!joined(mine, range, static_cast<int>(i), offset, bytes, kind))
            mine.push_back({reinterpret_cast<uintptr_t>(place), offset, static_cast<uint32_t>(bytes),
                            static_cast<uint16_t>(i), kind});
        return;
    }
    if (kind == atomic) counted->shared_atomics++;
}

void meet(unsigned first_lane, unsigned lanes) {
    grouped.clear();
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(lanes >> lane & 1) || first_lane + lane >= 1024) continue;
        std::vector<Access> &mine = noted[first_lane + lane];
        std::fill(visits.begin(), visits.end(), 0);
        for (const Access &access : mine) {
            const uint32_t place = places.try_emplace(access.place, places.size()).first->second;
            if (place >= visits.size()) visits.resize(place + 1);
            const uint64_t key = static_cast<uint64_t>(place) << 32 | visits[place]++;
            const int64_t last = (access.offset + access.bytes - 1) / sector_bytes;
            for (int64_t sector = access.offset / sector_bytes; sector <= last; sector++)
                grouped.push_back({key, sector, access.range, access.kind});
        }
        mine.clear();
    }
    std::sort(grouped.begin(), grouped.end());
    const auto end = std::unique(grouped.begin(), grouped.end());
    for (auto it = grouped.begin(); it != end; ++it) {
        Range &range = counted->ranges[it->range];
        range.sectors_read += it->kind != write;
        range.sectors_written += it->kind != read;
    }
}

void end_block(unsigned threads) {
    for (unsigned warp = 0; warp < threads; warp += 32) meet(warp, 0xffffffffu);
}

}  // namespace

void count_atomic(const volatile void *address, unsigned bytes) {
    note(address, bytes, atomic, __builtin_return_address(0));
}

}  // namespace cuda_host

extern "C" __attribute__((visibility("default"))) void cuda_host_count(cuda_host::Request *request) {
    using namespace cuda_host;
    counted = request;
    on_meeting = request ? meet : nullptr;
    on_block_end = request ? end_block : nullptr;
    elements.clear();
    for (auto &mine : noted) mine.clear();
    if (!request) return;
    for (int64_t i = 0; i < request->range_count; i++) {
        const Range &range = request->ranges[i];
        elements.emplace_back((range.bytes + range.element_bytes - 1) / range.element_bytes);
    }
}

#define NOTE(suffix, bytes)                                                                          \
    extern "C" __attribute__((visibility("hidden"))) void __tsan_read##suffix(void *address) {       \
        cuda_host::note(address, bytes, cuda_host::read, __builtin_return_address(0));               \
    }                                                                                                \
    extern "C" __attribute__((visibility("hidden"))) void __tsan_write##suffix(void *address) {      \
        cuda_host::note(address, bytes, cuda_host::write, __builtin_return_address(0));              \
    }                                                                                                \
    extern "C" __attribute__((visibility("hidden"))) void __tsan_unaligned_read##suffix(void *address) {  \
        cuda_host::note(address, bytes, cuda_host::read, __builtin_return_address(0));               \
    }                                                                                                \
    extern "C" __attribute__((visibility("hidden"))) void __tsan_unaligned_write##suffix(void *address) { \
        cuda_host::note(address, bytes, cuda_host::write, __builtin_return_address(0));              \
    }
NOTE(1, 1)
NOTE(2, 2)
NOTE(4, 4)
NOTE(8, 8)
NOTE(16, 16)
extern "C" __attribute__((visibility("hidden"))) void __tsan_read_range(void *address, size_t bytes) {
    cuda_host::note(address, static_cast<int64_t>(bytes), cuda_host::read, __builtin_return_address(0));
}
extern "C" __attribute__((visibility("hidden"))) void __tsan_write_range(void *address, size_t bytes) {
    cuda_host::note(address, static_cast<int64_t>(bytes), cuda_host::write, __builtin_return_address(0));
}
extern "C" __attribute__((visibility("hidden"))) void __tsan_init() {}
extern "C" __attribute__((visibility("hidden"))) void __tsan_func_entry(void *) {}
extern "C" __attribute__((visibility("hidden"))) void __tsan_func_exit() {}
extern "C" __attribute__((visibility("hidden"))) void __tsan_atomic_thread_fence(int) {}
