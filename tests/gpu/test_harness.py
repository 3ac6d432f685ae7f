"""The harness finds what it is there to find, each in a kernel with just that fault."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from das_gpu.backends.launch import Launch
from tests.gpu.harness.abi import Schedule
from tests.gpu.harness.build import CompileError, Flavour, KernelError, build, cache_folder
from tests.gpu.harness.host import Traffic, check, execute, tsan_check
from tests.gpu.harness.require import need_compiler

Dim = tuple[int, int, int]


@pytest.fixture(autouse=True)
def _tools() -> None:
    need_compiler()


class Sources:
    """Kernels from text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def launch(
        self,
        parameters: str,
        body: str,
        *args: Any,
        block: Dim = (32, 1, 1),
        grid: Dim = (1, 1, 1),
        options: tuple[str, ...] = (),
        shared_bytes: int = 0,
        before: str = "",
    ) -> Launch:
        text = (
            f'{before}\nextern "C" __global__ void kernel({parameters}) {{\n'
            f"const int t = threadIdx.x, b = blockIdx.x;\n{body}\n}}\n"
        )
        path = self._folder / "kernel.cu"
        path.write_text(text)
        return Launch(str(path), options, "kernel", grid, block, args, shared_bytes)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path)


def floats(n: int) -> NDArray[np.float32]:
    return np.arange(n, dtype=np.float32)


# What a correct kernel does


def test_threads_blocks_shared_memory_and_barriers(sources: Sources) -> None:
    a, out = floats(500), np.zeros(500, np.float32)
    body = """
        extern __shared__ float held[];
        const int i = b * blockDim.x + t, end = min((b + 1) * (int)blockDim.x, n);
        if (i < n) held[t] = a[i];
        __syncthreads();
        if (i < n) out[i] = factor * held[end - 1 - b * blockDim.x - t];
    """
    launch = sources.launch(
        "const float *__restrict__ a, float *out, int n, float factor",
        body,
        *(a, out, np.int32(500), np.float32(2)),
        block=(64, 1, 1),
        grid=(8, 1, 1),
        shared_bytes=256,
    )
    check(launch)
    expected = np.concatenate([2 * part[::-1] for part in np.split(a, range(64, 500, 64))])
    assert np.array_equal(out, expected)
    counts = execute(launch)
    assert (counts.launches, counts.threads, counts.barriers) == (1, 512, 8)


def test_shuffles_votes_and_predicated_barriers(sources: Sources) -> None:
    out = np.zeros((7, 32), np.int32)
    body = """
        int sum = t;
        for (int o = 16; o; o >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, o);
        out[t] = __shfl_sync(0xffffffffu, sum, 0);
        out[32 + t] = __ballot_sync(0xffffffffu, t & 1);
        out[64 + t] = __shfl_up_sync(0xffffffffu, t, 3);
        out[96 + t] = __shfl_xor_sync(0xffffffffu, t, 1, 8);
        out[128 + t] = __syncthreads_count(t < 5);
        out[160 + t] = __syncthreads_or(t == 9);
        out[192 + t] = 10 * __any_sync(0xffffffffu, t == 3) + __all_sync(0xffffffffu, t == 3);
    """
    check(sources.launch("int *out", body, out))
    lanes = np.arange(32)
    assert np.array_equal(out[0], np.full(32, 496))
    assert np.array_equal(out[1].view(np.uint32), np.full(32, 0xAAAAAAAA, np.uint32))
    assert np.array_equal(out[2], np.where(lanes < 3, lanes, lanes - 3))
    assert np.array_equal(out[3], lanes ^ 1)
    assert np.array_equal(out[4:, 0], [5, 1, 10])


def test_atomics(sources: Sources) -> None:
    whole, real = np.zeros(4, np.int64), np.zeros(1, np.float64)
    whole[1], whole[2] = 99, -99
    body = """
        __shared__ unsigned bins[4];
        if (t < 4) bins[t] = 0;
        __syncthreads();
        atomicAdd(&bins[t & 3], 1);
        atomicAdd(&whole[0], (long long)t);
        atomicMin(&whole[1], t - 5);
        atomicMax(&whole[2], t);
        atomicOr(&whole[3], 1LL << t);
        atomicAdd(real, 0.5);
        __syncthreads();
        if (t < 4 && bins[t] != 8) whole[0] = -1;
    """
    launch = sources.launch("long long *whole, double *real", body, whole, real)
    counts = execute(launch, flavour="counted")
    assert whole.tolist() == [496, -5, 31, 2**32 - 1]
    assert real[0] == 16
    assert counts.shared_atomics == 32
    assert counts.arguments[0].atomics == 128


def test_structures_and_complex_numbers(sources: Sources) -> None:
    number = np.array((2.0, 7, 0), np.dtype([("factor", "f8"), ("shift", "i4"), ("pad", "i4")]))
    z = (floats(32) + 1j).astype(np.complex64)
    launch = sources.launch(
        "float2 *z, const __grid_constant__ Numbers n",
        "const float2 v = z[t]; z[t] = make_float2(n.factor * v.x + n.shift, v.y);",
        *(z, number),
        before="struct Numbers { double factor; int shift, pad; };",
    )
    check(launch)
    assert np.array_equal(z, (2 * floats(32) + 7 + 1j).astype(np.complex64))


def test_intrinsics(sources: Sources) -> None:
    out = np.zeros(9, np.int64)
    body = """
        out[0] = __clz(1), out[1] = __popc(255), out[2] = __brev(1u);
        out[3] = __umulhi(0x80000000u, 6u), out[4] = __float2int_rn(2.5f);
        out[5] = __float2int_rz(1e20f), out[6] = __float2int_rn(nanf(""));
        out[7] = __float_as_int(__int_as_float(-5)), out[8] = max(3, -4LL);
    """
    execute(sources.launch("long long *out", body, out, block=(1, 1, 1)))
    assert out.tolist() == [31, 8, 2**31, 3, 2, 2**31 - 1, 0, -5, 3]


def test_denormal_float32_is_flushed_and_float64_is_not(sources: Sources) -> None:
    for dtype, name, kept in ((np.float32, "float", False), (np.float64, "double", True)):
        x = np.array([np.finfo(dtype).tiny], dtype)
        launch = sources.launch(
            "REAL *x", "x[0] *= (REAL)0.5;", x, block=(1, 1, 1), options=(f"-DREAL={name}",)
        )
        execute(launch)
        assert (x[0] != 0) == kept


# Memory


@pytest.mark.parametrize("index", [-1, 32])
@pytest.mark.parametrize("does", ["reads", "writes"])
def test_access_outside_an_argument_is_named(sources: Sources, index: int, does: str) -> None:
    a, out = floats(32), np.zeros(32, np.float32)
    statement = "out[t] = a[at];" if does == "reads" else "if (t == 7) out[at] = a[t];"
    launch = sources.launch(
        "const float *a, float *out, int at", statement, a, out, np.int32(index)
    )
    argument = 0 if does == "reads" else 1
    message = rf"{does} byte {4 * index} of argument {argument} "
    schedule: Schedule = "forward" if index > 0 else "backward"
    with pytest.raises(KernelError, match=message + r"\(float32, shape \(32,\), 128 bytes\)"):
        execute(launch, schedule=schedule)
    with pytest.raises(KernelError, match=rf"{does} byte {4 * index} of argument {argument}"):
        execute(launch, flavour="counted")


def test_write_beside_an_argument_within_its_page_is_found(sources: Sources) -> None:
    launch = sources.launch("float *out", "out[-1] = t;", floats(32))
    with pytest.raises(KernelError, match=r"wrote byte -\d of argument 0"):
        execute(launch, schedule="forward")


def test_write_to_a_constant_argument_is_found(sources: Sources) -> None:
    a = floats(32)
    a.flags.writeable = False
    launch = sources.launch("const float *a", "const_cast<float *>(a)[t] = 1;", a)
    with pytest.raises(KernelError, match=r"writes byte 0 of argument 0 .* although const"):
        execute(launch)
    assert np.array_equal(a, floats(32))


def test_overrun_of_dynamic_shared_memory_is_found(sources: Sources) -> None:
    body = "extern __shared__ float held[]; held[t + 1] = t; out[t] = held[t];"
    launch = sources.launch("float *out", body, floats(32), shared_bytes=128)
    with pytest.raises(KernelError, match="in no argument"):
        execute(launch)


@pytest.mark.parametrize("kind", ["__shared__ float held[32];", "extern __shared__ float held[];"])
def test_unwritten_shared_memory_is_found(sources: Sources, kind: str) -> None:
    body = f"{kind} if (t > 0) held[t] = t; __syncthreads(); out[t] = held[t] < 5;"
    launch = sources.launch("float *out", body, floats(32), shared_bytes=128)
    with pytest.raises(KernelError, match=r"schedule gives another result .* first at \(0,\)"):
        check(launch)


# Threads that should meet


def test_missing_barrier_depends_on_the_order(sources: Sources) -> None:
    body = "__shared__ int held[64]; held[t] = t; out[t] = held[63 - t];"
    launch = sources.launch("int *out", body, np.zeros(64, np.int32), block=(64, 1, 1))
    with pytest.raises(KernelError, match="schedule gives another result than the forward one"):
        check(launch)


def test_order_of_blocks_is_permuted(sources: Sources) -> None:
    launch = sources.launch("int *out", "out[0] = b;", np.zeros(1, np.int32), grid=(5, 1, 1))
    with pytest.raises(KernelError, match="schedule gives another result"):
        check(launch)


def test_blocks_that_disturb_each_other_are_found(sources: Sources) -> None:
    out = np.zeros(3, np.int32)
    for body, message in (
        ("if (t == 0) out[0] = 1;", "writes byte 0 of argument 0, which block 0 .* wrote"),
        ("if (t == 0) out[b + 1] = out[b];", "reads byte 4 of argument 0, which block 0"),
    ):
        launch = sources.launch("int *out", body, out, grid=(2, 1, 1))
        with pytest.raises(KernelError, match=message):
            execute(launch, flavour="counted")


def test_barriers_on_different_paths_are_found(sources: Sources) -> None:
    body = "if (t < 16) {\n__syncthreads();\n} else {\n__syncthreads();\n}\nout[t] = t;"
    launch = sources.launch("float *out", body, floats(32))
    with pytest.raises(KernelError, match="wait at different barriers"):
        execute(launch)


def test_barrier_that_a_warp_never_reaches_is_found(sources: Sources) -> None:
    body = "if (t < 16) __syncthreads(); else __syncwarp(0xffffffffu);\nout[t] = t;"
    launch = sources.launch("float *out", body, floats(32))
    with pytest.raises(KernelError, match="waits for lane 0, which waits in __syncthreads"):
        execute(launch)


def test_barrier_waits_only_for_threads_that_live(sources: Sources) -> None:
    out = floats(32)
    execute(sources.launch("float *out", "if (t > 9) return; __syncthreads(); out[t] = 1;", out))
    assert np.array_equal(out, np.where(np.arange(32) > 9, np.arange(32), 1))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "out[t] = __shfl_sync(0x0000ffffu, t, 0);",
            "lane 16 calls .* mask 0000ffff",
        ),
        ("if (t < 16) out[t] = __shfl_sync(0xffffffffu, t, 0);", "names lane 16, which has exited"),
        ("__syncwarp(t < 8 ? 0x000000ffu : 0xffffffffu);", "waits for lane 0|has exited"),
        ("if (t < 16) out[t] = __shfl_down_sync(0xffffu, t, 4);", "lane 12 reads lane 16"),
        ("out[t] = __shfl_sync(0xffffffffu, t, 0, 12);", "with width 12"),
    ],
)
def test_wrong_warp_masks_are_found(sources: Sources, body: str, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        execute(sources.launch("int *out", body, np.zeros(32, np.int32)))


def test_mask_of_lanes_the_block_does_not_have(sources: Sources) -> None:
    body = "out[t] = __ballot_sync(0xffffffffu, 1);"
    launch = sources.launch("int *out", body, np.zeros(8, np.int32), block=(8, 1, 1))
    with pytest.raises(KernelError, match="names lane 8, which the block does not have"):
        execute(launch)


def test_threads_that_wait_for_each_other_are_found(sources: Sources) -> None:
    body = "if (t < 32) __syncthreads();\nelse { __syncwarp();\n__syncthreads(); }"
    with pytest.raises(KernelError, match="different barriers"):
        execute(sources.launch("", body, block=(64, 1, 1)))


def test_the_next_launch_is_unharmed_by_a_fault(sources: Sources) -> None:
    out = np.zeros(32, np.int32)
    launch = sources.launch("int *out, int at", "__syncwarp(); out[at + t] = t;", out, np.int32(0))
    astray = Launch(*(launch.source, (), "kernel", (1, 1, 1), (32, 1, 1)), (out, np.int32(9)))
    for _ in range(3):
        with pytest.raises(KernelError):
            execute(astray)
        execute(launch)
    assert np.array_equal(out, np.arange(32))


# Arguments and geometry


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((floats(4), np.int32(4)), "2 arguments for 3 parameters"),
        ((floats(4).astype(np.float64), np.int32(4), np.float32(1)), "float32 is given float64"),
        ((floats(4), np.int64(4), np.float32(1)), "argument 1: int32 is given int64"),
        ((floats(4), 4, np.float32(1)), "wants a NumPy scalar, not a int"),
        ((np.float32(1), np.int32(4), np.float32(1)), "argument 0: a pointer to float32"),
        ((floats(8)[::2], np.int32(4), np.float32(1)), "not C-contiguous"),
        ((np.frombuffer(bytes(16), np.float32), np.int32(4), np.float32(1)), "read-only array"),
    ],
)
def test_wrong_arguments_are_refused(sources: Sources, args: tuple[Any, ...], message: str) -> None:
    launch = sources.launch("float *a, int n, float f", "if (t < n) a[t] = f;", *args)
    with pytest.raises(KernelError, match=message):
        execute(launch)


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((1, 1, 1), (1025, 1, 1), "no GPU has blocks"),
        ((1, 65_536, 1), (1, 1, 1), "no GPU has grids"),
        ((0, 1, 1), (1, 1, 1), "no GPU has grids"),
    ],
)
def test_wrong_geometry_is_refused(sources: Sources, grid: Dim, block: Dim, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        execute(sources.launch("", "", grid=grid, block=block))


def test_too_much_static_shared_memory_is_refused(sources: Sources) -> None:
    body = "__shared__ double held[8192]; held[t] = t; __syncthreads(); out[t] = held[31 - t];"
    with pytest.raises(KernelError, match="65536 bytes of static"):
        execute(sources.launch("float *out", body, floats(32)))


def test_an_array_may_be_given_twice_but_not_in_part(sources: Sources) -> None:
    a = floats(64)
    parameters, body = "const float *a, float *c", "c[t] = a[t] + 1;"
    execute(sources.launch(parameters, body, a[:32], a[:32]))
    assert np.array_equal(a[:32], floats(32) + 1)
    with pytest.raises(KernelError, match="overlaps another in part"):
        execute(sources.launch(parameters, body, a[:32], a[16:48]))


def test_null_pointers(sources: Sources) -> None:
    out = floats(32)
    execute(sources.launch("const int *a, float *out", "out[t] = a ? a[t] : -1;", None, out))
    assert np.all(out == -1)


def test_compiler_errors_name_the_line_of_the_kernel(sources: Sources) -> None:
    with pytest.raises(CompileError, match=r"kernel\.cu:4:.*nonsense"):
        execute(sources.launch("", "nonsense();"))


# Counting


@pytest.mark.parametrize(
    ("index", "sectors"),
    [("t", 4), ("8 * t", 32), ("2 * t", 8), ("0", 1), ("31 - t", 4), ("t + 1", 5), ("t / 4", 1)],
)
def test_sectors_of_a_warp_access_are_exact(sources: Sources, index: str, sectors: int) -> None:
    a, out = floats(256), np.zeros(32, np.float32)
    launch = sources.launch("const float *a, float *out", f"out[t] = a[{index}];", a, out)
    counts = execute(launch, flavour="counted")
    assert counts.arguments == {
        0: Traffic(read_bytes=128, sectors_read=sectors),
        1: Traffic(written_bytes=128, sectors_written=4),
    }
    assert counts.sector_traffic_bytes == 32 * (sectors + 4)


def test_reading_and_writing_in_place_counts_both(sources: Sources) -> None:
    launch = sources.launch("float *a", "for (int i = t; i < 96; i += 32) a[i] += 1;", floats(96))
    assert execute(launch, flavour="counted").total == Traffic(384, 384, 12, 12)


def test_members_of_a_complex_number_are_one_access(sources: Sources) -> None:
    z = np.zeros(32, np.complex64)
    body = "const float2 v = z[t]; z[t].x = v.x + 1; z[t].y = v.y;"
    counts = execute(sources.launch("float2 *z", body, z), flavour="counted")
    assert counts.total == Traffic(256, 256, 8, 8)


def test_lanes_that_diverge_around_an_access_are_grouped(sources: Sources) -> None:
    body = "float v = 0; if (t & 1) v = a[64 + t]; out[t] = v + a[t];"
    launch = sources.launch(
        "const float *a, float *out", body, floats(128), np.zeros(32, np.float32)
    )
    assert execute(launch, flavour="counted").arguments[0].sectors_read == 8


# Arithmetic


def test_signed_overflow_is_found(sources: Sources) -> None:
    launch = sources.launch("int *a", "a[t] = a[t] + 1;", np.full(32, 2**31 - 1, np.int32))
    execute(launch)
    launch.args[0][:] = 2**31 - 1
    with pytest.raises(KernelError, match=r"kernel\.cu:4: undefined .*: signed addition overflows"):
        execute(launch, flavour="ubsan")


def test_contraction_is_seen_except_where_it_is_forbidden(sources: Sources) -> None:
    x = np.float32(1 + 2**-12)
    a, out = np.full(32, x), np.zeros((2, 32), np.float32)
    body = "out[t] = a[t] * a[t] - c; out[32 + t] = __fsub_rn(__fmul_rn(a[t], a[t]), c);"
    launch = sources.launch("const float *a, float *out, float c", body, a, out, x * x)
    execute(launch)
    assert np.all(out == 0)
    execute(launch, flavour="fma")
    assert np.all(out[0] != 0)
    assert np.all(out[1] == 0)


def test_verification_sees_every_flavour(sources: Sources) -> None:
    a, seen = floats(32), []
    launch = sources.launch("float *a", "a[t] = 2 * a[t];", a)
    check(launch, flavours=("plain", "fma", "ubsan"), verify=lambda: seen.append(a.sum()))
    assert seen == [992, 992, 992]


# Races


RACE = """
    __shared__ int held[64];
    held[t] = t;
    {barrier}
    out[t] = held[t ^ {other}];
"""


@pytest.mark.parametrize(
    ("barrier", "other", "racy"),
    [
        ("__syncthreads();", 32, False),
        ("", 32, True),
        ("__syncwarp();", 1, False),
        ("__syncwarp();", 32, True),
        ("", 1, True),
        ("__shfl_sync(0xffffffffu, t, 0);", 1, True),
    ],
)
@pytest.mark.slow
def test_races_in_a_block(sources: Sources, barrier: str, other: int, racy: bool) -> None:
    out = np.zeros(64, np.int32)
    body = RACE.format(barrier=barrier, other=other)
    launch = sources.launch("int *out", body, out, block=(64, 1, 1))
    if racy:
        with pytest.raises(KernelError, match="data race"):
            tsan_check(launch)
    else:
        counts = tsan_check(launch)
        assert np.array_equal(out, np.arange(64) ^ other)
        assert counts.threads == 64


@pytest.mark.slow
def test_atomics_do_not_race_and_blocks_reuse_shared_memory(sources: Sources) -> None:
    out = np.zeros(3, np.int32)
    body = """
        __shared__ int sum;
        if (t == 0) sum = 0;
        __syncthreads();
        atomicAdd(&sum, t);
        __syncthreads();
        if (t == 0) out[b] = sum;
    """
    tsan_check(sources.launch("int *out", body, out, block=(64, 1, 1), grid=(3, 1, 1)))
    assert out.tolist() == [2016] * 3


# The machinery


def test_threads_take_turns(sources: Sources) -> None:
    body = "for (int i = 0; i < 200; i++) { __syncthreads(); } out[b * 32 + t] = b * 32 + t;"
    outs = [np.zeros(320, np.int32) for _ in range(4)]
    launches = [sources.launch("int *out", body, out, grid=(10, 1, 1)) for out in outs]
    build(launches[0], "plain")
    threads = [threading.Thread(target=execute, args=(launch,)) for launch in launches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in outs:
        assert np.array_equal(out, np.arange(320))


@pytest.mark.slow
def test_objects_are_kept_until_something_changes(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAS_GPU_KERNEL_CACHE", str(tmp_path / "cache"))
    flavour: Flavour = "plain"
    header = tmp_path / "factor.cuh"
    header.write_text("#define FACTOR 2\n")
    launch = sources.launch("", "", before='#include "factor.cuh"')
    first = build(launch, flavour)
    made = first.stat().st_mtime_ns
    assert first.parent == cache_folder() == tmp_path / "cache"
    assert build(launch, flavour) == first
    assert first.stat().st_mtime_ns == made
    header.write_text("#define FACTOR 3\n")
    assert build(launch, flavour) != first
    assert {path.suffix for path in cache_folder().iterdir()} == {".o", ".so"}
