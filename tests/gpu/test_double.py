"""The stand-in for CuPy: what it forbids, and that it lets the right program through.

Each rule has a small program that breaks it and is caught, beside the one that keeps it.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.gpu.harness import double, wheel
from tests.gpu.harness.double import DisciplineError, Gpu, Schedule, installed

SCHEDULES: tuple[Schedule, ...] = ("eager", "late", "random")
N = 64
NBYTES = 4 * N
NULL = np.uint64(0)
CODE = """
extern "C" __global__ void scale(const float* in, float* out, int n, float factor)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = factor * in[i];
}

/* Sums the first two columns of one channel. */
extern "C" __global__ void sum_slots(
    const float* ring, const long long* columns, const long long* spans, float* out)
{
    out[0] = ring[columns[2]] + ring[columns[5]] + (float)(spans[1] - 1);
}

/* Reads the ring's first element, whatever the table says. */
extern "C" __global__ void stray(
    const float* ring, const long long* columns, const long long* spans, float* out)
{
    out[0] = ring[0];
}

struct Pair { float x, y; };

extern "C" __global__ void add(const __grid_constant__ Pair pair, float* out)
{
    out[0] = pair.x + pair.y;
}

extern "C" __global__ void shared(float* out, const float* missing)
{
    extern __shared__ float values[];
    values[0] = missing == nullptr ? 1.0f : 2.0f;
    out[0] = values[0];
}
"""


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def gpu(schedule: Schedule) -> Iterator[Gpu]:
    with installed(schedule) as hands:
        yield hands


@contextmanager
def caught(why: str, schedule: Schedule = "eager") -> Iterator[Gpu]:
    """The program that is refused."""
    with pytest.raises(DisciplineError, match=why), installed(schedule) as hands:
        yield hands


def kernel(name: str, **options: Any) -> Any:
    import cupy

    return cupy.RawModule(code=CODE, options=("-std=c++17",), **options).get_function(name)


def stream() -> Any:
    import cupy

    return cupy.cuda.Stream(non_blocking=True)


def event() -> Any:
    import cupy

    return cupy.cuda.Event(disable_timing=True)


def pinned(count: int = N) -> tuple[Any, np.ndarray[Any, np.dtype[np.float32]]]:
    import cupy

    memory = cupy.cuda.alloc_pinned_memory(4 * count)
    return memory, np.frombuffer(memory, np.float32, count)


def array(count: int = N, dtype: str = "float32") -> Any:
    import cupy

    width = np.dtype(dtype).itemsize
    return cupy.ndarray((count,), np.dtype(dtype), memptr=cupy.cuda.alloc(count * max(8, width)))


def launch(
    scale: Any, source: Any, target: Any, on: Any, factor: float = 2.0, count: int = N
) -> None:
    args = (source, target, np.int32(count), np.float32(factor))
    scale((1,), (N,), args, shared_mem=0, stream=on)


def fill(target: Any, on: Any, value: int = 0) -> None:
    target.data.memset_async(value, target.nbytes, on)


# The right program


def rows(count: int = 6) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Copies in, computes and copies out on a stream each, two rows in flight."""
    copying, computing, leaving = stream(), stream(), stream()
    scale = kernel("scale")
    incoming, outgoing = [pinned(), pinned()], [pinned() for _ in range(count)]
    sources, targets = [array(), array()], [array(), array()]
    copied, computed, left = [event(), event()], [event(), event()], [event(), event()]
    for row in range(count):
        slot = row % 2
        copied[slot].synchronize()
        incoming[slot][1][:] = np.arange(N) + row
        copying.wait_event(computed[slot])
        sources[slot].data.copy_from_host_async(incoming[slot][0].ptr, NBYTES, copying)
        copied[slot].record(copying)
        computing.wait_event(copied[slot])
        computing.wait_event(left[slot])
        launch(scale, sources[slot], targets[slot], computing)
        computed[slot].record(computing)
        leaving.wait_event(computed[slot])
        targets[slot].data.copy_to_host_async(outgoing[row][0].ptr, NBYTES, leaving)
        left[slot].record(leaving)
    leaving.synchronize()
    return [values.copy() for _, values in outgoing]


EXPECTED = [2 * (np.arange(N, dtype=np.float32) + row) for row in range(6)]


def test_the_right_program_gives_the_right_values_whatever_the_schedule(gpu: Gpu) -> None:
    np.testing.assert_array_equal(rows(), EXPECTED)


def test_what_the_right_program_did_is_counted(gpu: Gpu) -> None:
    rows()
    counts = gpu.counts
    assert counts.launches == {"scale": 6}
    assert (counts.h2d_bytes, counts.d2h_bytes) == (6 * NBYTES, 6 * NBYTES)
    assert (counts.allocations, counts.pinned_allocations) == (4, 8)
    assert (counts.explicit_syncs, counts.hidden_syncs) == (7, 0)
    assert sum("kernel scale" in operation.what for operation in gpu.log) == 6
    gpu.reset_counts()
    assert gpu.counts == double.Counts()


SITES = 9


def sites() -> list[double.Site]:
    with installed() as gpu:
        rows()
        return list(gpu.sync_sites)


def test_every_line_that_orders_something_is_listed_once() -> None:
    kinds = [site.kind for site in sites()]
    assert len(kinds) == SITES
    assert sorted(set(kinds)) == ["record", "synchronize", "wait_event"]


@pytest.mark.parametrize("number", range(SITES))
def test_no_event_and_no_wait_of_the_right_program_can_be_left_out(number: int) -> None:
    site = sites()[number]

    def survives(schedule: Schedule) -> bool:
        try:
            with installed(schedule) as gpu:
                gpu.drop(site)
                return np.array_equal(rows(), EXPECTED)
        except DisciplineError:
            return False

    assert not all(survives(schedule) for schedule in SCHEDULES)


def test_a_line_can_be_dropped_by_its_number_too() -> None:
    wait = [site.kind for site in sites()].index("wait_event")
    with caught("no event orders the two") as gpu:
        gpu.drop(wait)
        rows()


# Order between streams


def test_a_read_that_does_not_wait_for_the_write_is_a_race(schedule: Schedule) -> None:
    with caught(r"reads what .* wrote, and no event orders", schedule):
        source, target = array(), array()
        fill(source, stream())
        launch(kernel("scale"), source, target, stream())


def test_a_write_that_does_not_wait_for_the_read_is_a_race(schedule: Schedule) -> None:
    with caught("no event orders the two", schedule):
        source, target, reading = array(), array(), stream()
        fill(source, reading)
        launch(kernel("scale"), source, target, reading)
        fill(source, stream())


def test_two_writes_are_a_race_only_where_they_overlap(schedule: Schedule) -> None:
    def write(first: int) -> None:
        target = array()
        target.data.memset_async(0, 128, stream())
        (target.data + first).memset_async(0, 64, stream())

    with installed(schedule):
        write(128)
    with caught("no event orders the two", schedule):
        write(127)


def test_the_message_names_the_memory_both_operations_and_both_streams() -> None:
    with caught("no event orders the two") as gpu:
        target = array()
        fill(target, stream())
        target.data.memset_async(0, 4, stream())
    message = str(gpu.violations[0])
    for part in ("512 bytes allocated at", "bytes [0, 4)", "#1 memset", "#2 memset"):
        assert part in message
    assert "stream 1 (made at test_double.py" in message
    assert "stream 2 (made at test_double.py" in message


def test_an_event_orders_and_order_is_passed_on(gpu: Gpu) -> None:
    streams = [stream() for _ in range(4)]
    target = array()
    fill(target, streams[0])
    for before, after in itertools.pairwise(streams):
        after.wait_event(before.record())
    fill(target, streams[3])


def test_an_event_orders_what_came_before_its_record_only(schedule: Schedule) -> None:
    with caught("no event orders the two", schedule):
        target, writing, other = array(), stream(), stream()
        mark = writing.record()
        fill(target, writing)
        other.wait_event(mark)
        fill(target, other)


def test_waiting_on_the_host_orders_too(gpu: Gpu) -> None:
    target, writing = array(), stream()
    fill(target, writing)
    writing.synchronize()
    fill(target, stream())


def test_an_event_that_is_asked_often_enough_is_done(gpu: Gpu) -> None:
    target, writing, mark = array(), stream(), event()
    assert mark.done
    fill(target, writing)
    mark.record(writing)
    assert any(mark.done for _ in range(200))
    fill(target, stream())


def test_late_operations_wait_until_something_waits_for_them() -> None:
    with installed("late") as gpu:
        memory, values = pinned()
        target, writing = array(), stream()
        fill(target, writing)
        mark = writing.record()
        fill(target, writing, 1)
        assert not any(operation.done for operation in gpu.log)
        mark.synchronize()
        assert [operation.done for operation in gpu.log] == [True, True, False]
        target.data.copy_to_host_async(memory.ptr, NBYTES, writing)
        assert np.isnan(values).all()
        writing.synchronize()
        assert values.tobytes() == b"\x01" * NBYTES


def test_random_operations_run_at_random_but_alike_for_a_seed() -> None:
    def run(seed: int) -> list[bool]:
        with installed("random", seed) as gpu:
            target = array()
            writing = stream()
            for _ in range(20):
                fill(target, writing)
            return [operation.done for operation in gpu.log]

    assert run(1) == run(1)
    assert len({sum(run(seed)) for seed in range(5)}) > 1


# The host's memory


def test_host_memory_must_not_change_before_its_copy_is_known_to_be_over(
    schedule: Schedule,
) -> None:
    with caught("the host wrote them before", schedule):
        memory, values = pinned()
        target, copying = array(), stream()
        for row in range(2):
            values[:] = row
            target.data.copy_from_host_async(memory.ptr, NBYTES, copying)
        copying.synchronize()


def test_host_memory_is_read_when_the_copy_runs() -> None:
    with caught("the host wrote them before", "late"):
        memory, values = pinned()
        target, copying = array(), stream()
        target.data.copy_from_host_async(memory.ptr, NBYTES, copying)
        values[5] = 1
        copying.synchronize()


def test_host_memory_that_a_copy_will_fill_is_garbage_until_it_has() -> None:
    with installed("late"):
        memory, values = pinned()
        values[:] = 1
        source, leaving = array(), stream()
        fill(source, leaving)
        source.data.copy_to_host_async(memory.ptr, NBYTES, leaving)
        assert np.isnan(values).all()
        leaving.synchronize()
        assert (values == 0).all()


def test_the_host_may_read_what_is_being_copied_from_it_but_not_write(gpu: Gpu) -> None:
    memory, values = pinned()
    target, copying = array(), stream()
    target.data.copy_from_host_async(memory.ptr, NBYTES, copying)
    gpu.host_read(values)
    with pytest.raises(DisciplineError, match="may still use"):
        gpu.host_write(values)
    gpu.violations.clear()
    copying.synchronize()


def test_host_memory_may_change_after_its_copy_is_known_to_be_over(gpu: Gpu) -> None:
    import ctypes

    memory, values = pinned()
    target, copying = array(), stream()
    for row in range(2):
        values[:] = row
        target.data.copy_from_host_async(ctypes.c_void_p(memory.ptr), NBYTES, copying)
        copying.synchronize()
    with gpu.allow_sync():
        np.testing.assert_array_equal(target.get(), np.ones(N, np.float32))


@pytest.mark.parametrize("writes", [False, True])
def test_the_host_may_say_that_it_touches_memory(schedule: Schedule, *, writes: bool) -> None:
    with installed(schedule) as gpu:
        memory, values = pinned()
        source, leaving = array(), stream()
        fill(source, leaving)
        source.data.copy_to_host_async(memory.ptr, NBYTES, leaving)
        touch = gpu.host_write if writes else gpu.host_read
        with pytest.raises(DisciplineError, match="may still use"):
            touch(values)
        gpu.violations.clear()
        leaving.synchronize()
        touch(values)


def test_host_memory_that_a_copy_will_fill_must_not_be_written() -> None:
    with caught("the host wrote them before", "late"):
        memory, values = pinned()
        source, leaving = array(), stream()
        fill(source, leaving)
        source.data.copy_to_host_async(memory.ptr, NBYTES, leaving)
        values[3] = 1


def test_memory_may_leave_and_come_back_on_one_stream(gpu: Gpu) -> None:
    memory, values = pinned()
    first, second, copying = array(), array(), stream()
    fill(first, copying, 1)
    first.data.copy_to_host_async(memory.ptr, NBYTES, copying)
    second.data.copy_from_host_async(memory.ptr, NBYTES, copying)
    second.data.copy_to_host_async(memory.ptr, NBYTES, copying)
    copying.synchronize()
    assert values.tobytes() == b"\x01" * NBYTES


def test_only_pinned_memory_is_copied(schedule: Schedule) -> None:
    with caught("not pinned", schedule):
        pageable = np.zeros(N, np.float32)
        array().data.copy_from_host_async(pageable.ctypes.data, NBYTES, stream())
    with caught("not pinned", schedule):
        memory, _ = pinned()
        array(2 * N).data.copy_from_host_async(memory.ptr + 512, 512, stream())


# Memory of the device


def test_memory_that_was_never_written_is_not_read(schedule: Schedule) -> None:
    with caught("never written", schedule):
        launch(kernel("scale"), array(), array(), stream())
    with caught("never written", schedule):
        memory, _ = pinned()
        source, leaving = array(), stream()
        source.data.memset_async(0, NBYTES - 1, leaving)
        source.data.copy_to_host_async(memory.ptr, NBYTES, leaving)


def test_a_kernel_may_read_part_of_what_it_is_given(gpu: Gpu) -> None:
    source, target, computing = array(), array(), stream()
    source.data.memset_async(0, 4, computing)
    launch(kernel("scale"), source, target, computing, count=1)


def test_arrays_are_aligned_to_their_elements(schedule: Schedule) -> None:
    with caught("misaligned", schedule):
        import cupy

        cupy.ndarray((1,), np.float64, memptr=array().data + 4)


def test_unwritten_memory_is_garbage_in_every_type(gpu: Gpu) -> None:
    with gpu.allow_sync():
        assert np.isnan(array().get()).all()
        assert np.isnan(array(dtype="float64").get()).all()
        assert (np.abs(array(dtype="int32").get()) > 2**30).all()


def test_copies_stay_inside_their_allocation(schedule: Schedule) -> None:
    with caught(r"bytes \[508, 516\)", schedule):
        (array().data + 508).memset_async(0, 8, stream())
    with caught(r"bytes \[0, 516\)", schedule):
        import cupy

        cupy.ndarray((129,), np.float32, memptr=array().data)


def test_copies_on_the_device_do_not_overlap_themselves(schedule: Schedule) -> None:
    with installed(schedule) as gpu:
        target, copying = array(), stream()
        fill(target, copying, 1)
        (target.data + 256).copy_from_device_async(target.data, 256, copying)
        assert gpu.counts.d2d_bytes == 256
        with pytest.raises(DisciplineError, match="overlapping"):
            (target.data + 4).copy_from_device_async(target.data, 256, copying)
        gpu.violations.clear()


def test_memory_is_freed_only_when_no_other_stream_uses_it(schedule: Schedule) -> None:
    def use(*, waits: bool) -> None:
        owning, other = stream(), stream()
        with owning:
            target = array()
        fill(target, other)
        if waits:
            owning.wait_event(other.record())
        del target
        gc.collect()

    with installed(schedule) as gpu:
        use(waits=True)
        assert gpu.used_bytes == [0]
    with caught("freed while stream", schedule) as gpu:
        use(waits=False)
        stream()


def test_what_a_kernel_was_given_is_not_kept_by_it(schedule: Schedule) -> None:
    with caught("freed while stream", schedule):
        computing, out = stream(), array()
        out.data.memset_async(0, out.nbytes, computing)
        launch(kernel("scale"), out, array(), computing)
        gc.collect()
        stream()


def test_pinned_memory_is_freed_only_when_the_host_knows_it_is_over(schedule: Schedule) -> None:
    with caught("freed while stream", schedule):
        memory, values = pinned()
        copying = stream()
        array().data.copy_from_host_async(memory.ptr, NBYTES, copying)
        del memory, values
        gc.collect()
        stream()


def test_freeing_without_a_pool_waits_for_the_device(schedule: Schedule) -> None:
    with caught("synchronises", schedule):
        import cupy

        with cupy.cuda.using_allocator(None):
            target = array()
        fill(target, stream())
        del target
        gc.collect()
        stream()


def test_what_was_done_keeps_no_memory(gpu: Gpu) -> None:
    owning = stream()
    with owning:
        target = array()
    fill(target, owning)
    owning.synchronize()
    del target
    gc.collect()
    assert len(gpu.log) == 2
    assert gpu.used_bytes == [0]


def test_out_of_memory_is_cupys_own_and_what_is_freed_can_be_had_again(
    schedule: Schedule,
) -> None:
    with installed(schedule, memory_bytes=4096):
        import cupy

        pool = cupy.cuda.MemoryPool()
        cupy.cuda.set_allocator(pool.malloc)
        held = cupy.cuda.alloc(3000)
        assert cupy.cuda.runtime.memGetInfo() == (4096 - 3072, 4096)
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="allocating 3,072 bytes"):
            cupy.cuda.alloc(3000)
        del held
        cupy.cuda.alloc(3000)


# Kernels


def test_arguments_are_device_arrays_explicit_scalars_and_null(gpu: Gpu) -> None:
    target, computing = array(), stream()
    shared = kernel("shared")
    shared((1, 1, 1), (1,), (target, NULL), shared_mem=4, stream=computing)
    with gpu.allow_sync():
        assert target[0].item() == 1
    for wrong in (2, 2.0, np.zeros(3, np.float32), np.float64(2)):
        with pytest.raises(DisciplineError, match="argument 1"):
            shared((1,), (1,), (target, wrong), shared_mem=4, stream=computing)
    gpu.violations.clear()


def test_scalars_and_structures_are_read_when_the_kernel_is_launched(gpu: Gpu) -> None:
    target, computing = array(), stream()
    pair = np.array((1, 2), [("x", np.float32), ("y", np.float32)])
    kernel("add")((1,), (1,), (pair, target), stream=computing)
    pair["x"] = 7
    with gpu.allow_sync():
        assert target[0].item() == 3


def test_more_shared_memory_must_be_asked_for(gpu: Gpu) -> None:
    target, computing = array(), stream()
    shared = kernel("shared")
    with pytest.raises(DisciplineError, match="not asked for"):
        shared((1,), (1,), (target, NULL), shared_mem=50_000, stream=computing)
    gpu.violations.clear()
    shared.max_dynamic_shared_size_bytes = 50_000
    shared((1,), (1,), (target, NULL), shared_mem=50_000, stream=computing)
    with pytest.raises(DisciplineError, match="shared memory"):
        shared.max_dynamic_shared_size_bytes = 240_000
    gpu.violations.clear()


def test_a_kernel_that_leaves_its_arguments_is_stopped(schedule: Schedule) -> None:
    with caught("scale: .* reads byte 256 of argument 0", schedule):
        source, target, computing = array(), array(), stream()
        fill(source, computing)
        args = (source, target, np.int32(2 * N), np.float32(1))
        kernel("scale")((2,), (N,), args, stream=computing)


def test_arguments_do_not_overlap(schedule: Schedule) -> None:
    with caught("arguments 0 and 1 overlap", schedule):
        source, computing = array(), stream()
        fill(source, computing)
        launch(kernel("scale"), source, source, computing)


def test_a_kernel_is_looked_for_and_compiled_when_it_is_asked_for() -> None:
    with installed() as gpu:
        import cupy

        with pytest.raises(DisciplineError, match="no extern"):
            kernel("nowhere")
        gpu.violations.clear()
        broken = cupy.RawModule(code='extern "C" __global__ void f(float* x) { y = 1; }')
        with pytest.raises(cupy.cuda.compiler.CompileException, match="y"):
            broken.get_function("f")


def use_slots(slots: list[int], name: str = "sum_slots") -> Any:
    """Let a kernel read two slots of a ring while a third is filled on another stream."""
    copying, computing = stream(), stream()
    ring, out, tables = array(96), array(1), array(12, "int64")
    memory, _ = pinned(24)
    np.frombuffer(memory, np.int64, 12)[:] = [0, 32, slots[0], 32, 32, slots[1], 0, 1, 0, 64, 0, 1]
    ring.data.memset_async(0, 256, copying)
    tables.data.copy_from_host_async(memory.ptr, 96, copying)
    computing.wait_event(copying.record())
    (ring.data + 256).memset_async(1, 128, copying)
    columns = tables[:6].reshape(2, 3)
    spans = tables[6:].reshape(1, 6)
    kernel(name)((1,), (1,), (ring, columns, spans, out), stream=computing)
    copying.synchronize()
    computing.synchronize()
    return out


def test_a_kernel_reads_the_slots_of_its_table_while_another_is_filled(gpu: Gpu) -> None:
    out = use_slots([0, 32])
    with gpu.allow_sync():
        assert out.get()[0] == 0


def test_a_kernel_is_shown_garbage_in_the_slots_its_table_leaves_out(gpu: Gpu) -> None:
    out = use_slots([32, 32], "stray")
    with gpu.allow_sync():
        assert np.isnan(out.get()[0])


def test_a_slot_that_is_being_filled_is_not_read(schedule: Schedule) -> None:
    with caught("no event orders the two", schedule):
        use_slots([0, 64])
    with caught("outside the ring", schedule):
        use_slots([0, 65])


# Transforms


@pytest.mark.parametrize(("real", "out"), [("float32", "complex64"), ("float64", "complex128")])
def test_transforms_are_unnormalised_and_in_their_own_precision(
    gpu: Gpu, real: str, out: str
) -> None:
    from cupy.cuda import cufft

    single = real == "float32"
    memory, _ = pinned(120)
    values = np.frombuffer(memory, real, 60).reshape(3, 20)
    values[:] = np.random.default_rng(1).standard_normal((3, 20))
    samples, spectrum, back = array(60, real), array(33, out), array(60, out)
    whole, computing = array(60, out), stream()
    with computing:
        forward = cufft.Plan1d(20, cufft.CUFFT_R2C if single else cufft.CUFFT_D2Z, 3)
        inverse = cufft.Plan1d(20, cufft.CUFFT_C2C if single else cufft.CUFFT_Z2Z, 3)
        samples.data.copy_from_host_async(memory.ptr, values.nbytes, computing)
        forward.fft(samples, spectrum, cufft.CUFFT_FORWARD)
        fill(whole, computing)
        for row in range(3):
            width = whole.itemsize
            to, source = whole.data + 20 * row * width, spectrum.data + 11 * row * width
            to.copy_from_device_async(source, 11 * width, computing)
        inverse.fft(whole, back, cufft.CUFFT_INVERSE)
    assert gpu.counts.fft_calls == 2
    with gpu.allow_sync():
        assert spectrum.get().dtype == out
        expected = np.fft.rfft(values)
        tolerance = 1e-5 if single else 1e-13
        np.testing.assert_allclose(spectrum.get().reshape(3, 11), expected, atol=tolerance)
        one_sided = np.concatenate([expected, np.zeros((3, 9))], axis=1)
        np.testing.assert_allclose(
            back.get().reshape(3, 20), 20 * np.fft.ifft(one_sided), atol=tolerance
        )


@pytest.mark.parametrize("waits", [True, False])
def test_a_plan_works_for_one_stream_at_a_time(schedule: Schedule, *, waits: bool) -> None:
    with installed(schedule) if waits else caught("no event orders the two", schedule):
        from cupy.cuda import cufft

        first, second = stream(), stream()
        plan = cufft.Plan1d(8, cufft.CUFFT_C2C, 1)
        arrays = [array(8, "complex64") for _ in range(4)]
        for on, values, out in ((first, *arrays[:2]), (second, *arrays[2:])):
            fill(values, on)
            with on:
                plan.fft(values, out, cufft.CUFFT_FORWARD)
            if waits:
                second.wait_event(on.record())
        first.synchronize()
        second.synchronize()


def test_transforms_take_whole_arrays_of_the_right_type_and_size(gpu: Gpu) -> None:
    import cupy

    cufft = cupy.cuda.cufft
    plan = cufft.Plan1d(8, cufft.CUFFT_C2C, 4)
    good, small = array(32, "complex64"), array(31, "complex64")
    with stream():
        for wrong, why in (
            (good[:], "is a view"),
            (good.reshape(4, 8), "is a view"),
            (small, "holds 31 elements, not 32"),
            (array(32, "complex128"), "is complex128"),
        ):
            with pytest.raises(DisciplineError, match=why):
                plan.fft(wrong, good, cufft.CUFFT_FORWARD)
    gpu.violations.clear()


def test_transforms_have_a_direction_apart_arrays_and_alignment(gpu: Gpu) -> None:
    import cupy

    cufft = cupy.cuda.cufft
    whole = array(32, "complex64")
    real = cupy.ndarray((32,), np.float32, memptr=array(64).data + 4)
    beside = cupy.ndarray((31,), np.complex64, memptr=whole.data + 8)
    both = cufft.Plan1d(8, cufft.CUFFT_C2C, 3)
    forward = cufft.Plan1d(8, cufft.CUFFT_R2C, 3)
    samples = array(24)
    with stream() as on:
        fill(whole, on)
        fill(samples, on)
        wrong: tuple[tuple[Callable[[], None], str], ...] = (
            (lambda: both.fft(whole, array(32, "complex64"), 0), "no direction"),
            (lambda: forward.fft(samples, whole, cufft.CUFFT_INVERSE), "no direction"),
            (lambda: both.fft(whole, beside, cufft.CUFFT_FORWARD), "overlap"),
            (lambda: forward.fft(real, whole, cufft.CUFFT_FORWARD), "not aligned"),
        )
        for transform, why in wrong:
            with pytest.raises(DisciplineError, match=why):
                transform()
        both.fft(whole, whole, cufft.CUFFT_FORWARD)
    gpu.violations.clear()


def test_transforms_read_written_memory(schedule: Schedule) -> None:
    with caught("never written", schedule):
        import cupy

        cufft = cupy.cuda.cufft
        plan = cufft.Plan1d(8, cufft.CUFFT_C2C, 4)
        with stream():
            plan.fft(array(32, "complex64"), array(32, "complex64"), cufft.CUFFT_FORWARD)


# Hidden synchronisation, the null stream, several devices, failing devices


def test_the_null_stream_and_streams_that_wait_for_it_are_refused(schedule: Schedule) -> None:
    with caught("null stream", schedule):
        fill(array(), None)
    with caught("null stream", schedule):
        import cupy

        cupy.zeros(3)
    with caught("null stream", schedule):
        import cupy

        cupy.cuda.Stream()


def test_the_stream_that_was_entered_is_the_current_one(gpu: Gpu) -> None:
    import cupy

    outer, inner = stream(), stream()
    with outer:
        with inner:
            zeros = cupy.zeros(3, np.int32)
            assert cupy.cuda.get_current_stream() is inner
        assert cupy.cuda.get_current_stream() is outer
    assert cupy.cuda.get_current_stream() is cupy.cuda.Stream.null
    with gpu.allow_sync():
        assert zeros.get().tolist() == [0, 0, 0]


@pytest.mark.parametrize("what", ["int", "item", "get", "asnumpy", "Device"])
def test_what_synchronises_implicitly_must_be_allowed(schedule: Schedule, what: str) -> None:
    with installed(schedule) as gpu:
        import cupy

        target, computing = array(1, "int32").reshape(()), stream()
        fill(target, computing)
        sync = {
            "int": lambda: int(target),
            "item": target.item,
            "get": target.get,
            "asnumpy": lambda: cupy.asnumpy(target),
            "Device": lambda: cupy.cuda.Device().synchronize(),
        }[what]
        with pytest.raises(DisciplineError, match="synchronises with the device"):
            sync()
        assert gpu.counts.hidden_syncs == 1
        gpu.violations.clear()
        with gpu.allow_sync():
            assert sync() in (None, 0)


def test_numpy_does_not_take_device_arrays(gpu: Gpu) -> None:
    target = array()
    for take in (np.asarray, np.sum, np.sqrt, lambda a: a + np.ones(N)):
        with pytest.raises(TypeError):
            take(target)


def test_streams_and_memory_stay_on_their_device(schedule: Schedule) -> None:
    with installed(schedule, devices=2) as gpu:
        import cupy

        target, writing = array(), stream()
        with cupy.cuda.Device(1):
            assert cupy.cuda.Device().id == 1
            with pytest.raises(DisciplineError, match="belongs to device 0"):
                fill(target, writing)
            with pytest.raises(DisciplineError, match="is on device 0"):
                fill(target, stream())
        gpu.violations.clear()
        fill(target, writing)
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidDevice"):
            cupy.cuda.Device(2).use()


def test_without_a_device_or_a_driver_the_errors_are_cudas() -> None:
    for settings, name in (
        ({"devices": 0}, "cudaErrorNoDevice"),
        ({"driver_version": 0}, "cudaErrorInsufficientDriver"),
    ):
        with installed(**settings):  # type: ignore[arg-type]
            import cupy

            with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=name):
                cupy.cuda.runtime.getDeviceCount()


@pytest.mark.parametrize("lasting", [True, False])
def test_a_device_can_fail_in_the_middle(schedule: Schedule, *, lasting: bool) -> None:
    with installed(schedule) as gpu:
        import cupy

        target, writing = array(), stream()
        gpu.fail_after(1, lasting=lasting)
        fill(target, writing)
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorLaunchFailure"):
            fill(target, writing)
        if lasting:
            del target
            with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
                writing.synchronize()
        else:
            writing.synchronize()


def test_threads_may_each_have_their_streams(gpu: Gpu) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(rows())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, [EXPECTED] * 3)


def test_a_fault_that_the_program_swallows_is_raised_at_the_end(schedule: Schedule) -> None:
    with caught("null stream", schedule):
        try:
            fill(array(), None)
        except AssertionError:
            fill(array(), stream())


def test_nothing_outlives_its_installation() -> None:
    with installed():
        target, writing = array(), stream()
    with pytest.raises(DisciplineError, match="the device is gone"):
        fill(target, writing)
    with caught("earlier installation"):
        fill(target, stream())
    with caught("earlier installation"):
        fill(array(), writing)


# Names and signatures


def offered() -> list[tuple[str, Any]]:
    """Every name of the double, with what can be called for itself."""
    found = []
    for path, value in double.SURFACE.items():
        members = vars(value).items() if inspect.isclass(value) else ()
        found.append((path, None if inspect.isclass(value) or not callable(value) else value))
        for name, member in members:
            if name == "__init__" or not name.startswith("_"):
                found.append((f"{path}.{name}", member if inspect.isfunction(member) else None))
    return found


@pytest.mark.parametrize(("path", "function"), offered(), ids=[path for path, _ in offered()])
def test_every_name_and_parameter_is_the_wheels(path: str, function: Any) -> None:
    assert wheel.exists(path)
    if function is not None:
        assert wheel.differences(path, function) == []


def test_a_name_or_parameter_that_the_wheel_lacks_is_noticed() -> None:
    def wrong(stop: int, shape: int, dtype: type = int, *, fast: bool = True) -> None: ...

    assert not wheel.exists("cuda.Stream.notify")
    assert not wheel.exists("cuda.cufft.Plan1d.run")
    assert wheel.differences(
        "cuda.cufft.Plan1d.fft", lambda a, direction, out: (a, out, direction)
    ) == [
        "cupy.cuda.cufft.Plan1d.fft does not take 'direction' in place 1",
        "cupy.cuda.cufft.Plan1d.fft does not take 'out' in place 2",
    ]
    assert wheel.differences("empty", wrong) == [
        "cupy.empty has no parameter 'stop'",
        "cupy.empty does not take 'shape' in place 1",
        "cupy.empty does not take 'dtype' in place 2",
        "cupy.empty has no parameter 'fast'",
    ]
    assert wheel.differences("empty", lambda shape, dtype=int: (shape, dtype)) == [
        "cupy.empty: 'dtype' defaults to <class 'float'>"
    ]
    assert wheel.differences("cuda.MemoryPointer.memset_async", lambda value: value) == [
        "cupy.cuda.MemoryPointer.memset_async needs 'size'"
    ]


def test_attributes_of_devices_are_the_wheels() -> None:
    runtime = wheel.real().cuda.runtime
    with installed():
        import cupy

        device = cupy.cuda.Device(0)
        assert all(hasattr(runtime, f"cudaDevAttr{name}") for name in device.attributes)
        assert device.compute_capability == "90"
        assert device.mem_info == cupy.cuda.runtime.memGetInfo()
        assert cupy.cuda.runtime.getDeviceProperties(0)["major"] == 9
        assert cupy.cuda.runtime.driverGetVersion() == 13000


def test_names_it_does_not_offer_are_named() -> None:
    with installed() as gpu:
        import cupy

        with pytest.raises(AttributeError, match=r"double does not support cupy\.show_config"):
            cupy.show_config()
        with pytest.raises(AttributeError, match=r"nor the real CuPy has cupy\.cuda\.streams"):
            cupy.cuda.streams  # noqa: B018
        with pytest.raises(AttributeError, match=r"double does not support cupy\.ndarray\.sum"):
            array().sum()
        with pytest.raises(ImportError):
            __import__("cupyx.scipy.signal")
        with pytest.raises(TypeError):
            array().data.copy_from_host_async(mem=1, nbytes=2)
        assert gpu.violations == []


def test_the_real_one_is_back_afterwards() -> None:
    real = wheel.real()
    assert sys.modules["cupy"] is real
    with installed():
        assert sys.modules["cupy"] is not real
    assert sys.modules["cupy"] is real
    with pytest.raises(ZeroDivisionError), installed():
        raise ZeroDivisionError
    assert sys.modules["cupy"] is real


# Arrays


def test_views_have_a_base_and_read_the_same_memory(gpu: Gpu) -> None:
    whole, writing = array(24, "int32"), stream()
    fill(whole, writing)
    view = whole.reshape(4, 6)[1:3, ::2]
    fill(whole[12:], writing, 1)
    assert whole.base is None
    assert view.base is whole
    assert whole.flags.c_contiguous
    assert not view.flags.c_contiguous
    assert (view.shape, view.nbytes, view.data.ptr - whole.data.ptr) == ((2, 3), 24, 24)
    with gpu.allow_sync():
        assert view.get().tolist() == [[0, 0, 0], [0x01010101] * 3]
        assert int(whole[13]) == 0x01010101
    with pytest.raises(DisciplineError, match="this reshape copies"):
        view.reshape(6)
    with pytest.raises(DisciplineError, match="only slices and integers"):
        whole[[1, 2]]
    gpu.violations.clear()


def test_views_behave_as_cupys_own() -> None:
    """Arrays over host memory show CuPy's own bookkeeping without a device."""
    cupy = wheel.real()
    memory = np.zeros(96, np.uint8)
    owner = cupy.cuda.UnownedMemory(memory.ctypes.data, 96, memory, device_id=0)
    real = cupy.ndarray((4, 6), np.float32, memptr=cupy.cuda.MemoryPointer(owner, 0))
    with installed():
        import cupy as doubled

        ours = doubled.ndarray((4, 6), np.float32)
        changes: tuple[Callable[[Any], Any], ...] = (
            lambda a: a,
            lambda a: a.reshape(24),
            lambda a: a[1:3],
            lambda a: a[1:3][1:],
            lambda a: a[:, ::2],
            lambda a: a[1],
            lambda a: a[1, 2],
            lambda a: a[..., None],
        )
        for change in changes:
            mine, theirs = change(ours), change(real)
            assert mine.shape == theirs.shape
            assert mine.data.ptr - ours.data.ptr == theirs.data.ptr - real.data.ptr
            assert mine.flags.c_contiguous == theirs.flags.c_contiguous
            assert mine.flags.owndata == theirs.flags.owndata
            assert (mine.base is ours) == (theirs.base is real)
