"""Every kernel compiles for every architecture as CuPy compiles it, within its budget."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest

from tests.gpu.harness import nvrtc
from tests.gpu.harness.build import CompileError, kernel_folder
from tests.gpu.harness.require import need_nvrtc

MODULES = ("filtering", "imaging")
UNSPILLED = ("80", "90", "100")
MOST_STATIC_SHARED = 48 * 1024


@pytest.fixture(autouse=True)
def _tools() -> None:
    need_nvrtc()


@pytest.fixture
def kernel_file(tmp_path: Path) -> Path:
    (tmp_path / "factor.cuh").write_text("#define FACTOR 2\n")
    path = tmp_path / "small.cu"
    path.write_text(
        '#include "factor.cuh"\n'
        'extern "C" __global__ void scale(const REAL *a, REAL *b) {\n'
        "    __shared__ REAL held[256];\n"
        "    held[threadIdx.x] = a[threadIdx.x];\n"
        "    __syncthreads();\n"
        "    b[threadIdx.x] = FACTOR * held[255 - threadIdx.x];\n"
        "}\n"
        'extern "C" __global__ void __launch_bounds__(1024, 2)\n'
        "crowded(const float *a, float *b) {\n"
        "    float held[64];\n"
        "#pragma unroll\n"
        "    for (int i = 0; i < 64; i++) held[i] = a[i * 1024 + threadIdx.x];\n"
        "    __syncthreads();\n"
        "#pragma unroll\n"
        "    for (int i = 0; i < 64; i++) b[i * 1024 + threadIdx.x] = held[63 - i] * held[i];\n"
        "}\n"
    )
    return path


def test_resources_of_each_kernel_are_read(kernel_file: Path) -> None:
    found = nvrtc.resources(str(kernel_file), ("-DREAL=double",), "80")
    assert set(found) == {"scale", "crowded"}
    scale = found["scale"]
    assert scale.shared_bytes == 256 * 8
    assert (scale.spill_store_bytes, scale.spill_load_bytes, scale.stack_bytes) == (0, 0, 0)
    assert 0 < scale.registers <= 32


def test_spills_are_seen(kernel_file: Path) -> None:
    crowded = nvrtc.resources(str(kernel_file), ("-DREAL=float",), "80")["crowded"]
    assert crowded.registers <= 32
    assert crowded.spill_store_bytes > 0
    assert crowded.spill_load_bytes > 0


def test_what_is_kept_is_what_was_found(kernel_file: Path) -> None:
    options = ("-DREAL=float",)
    first = nvrtc.resources(str(kernel_file), options, "90")
    assert nvrtc.resources(str(kernel_file), options, "90") == first
    (kernel_file.parent / "factor.cuh").write_text("#define FACTOR +\n")
    with pytest.raises(CompileError, match="sm_90"):
        nvrtc.resources(str(kernel_file), options, "90")


def test_options_are_those_of_cupy() -> None:
    options = nvrtc.cupy_options(("-DREAL=float", "-std=c++17"), "86")
    given = [option for option in options if not option.startswith("-I")]
    assert given == [
        "-DREAL=float",
        "-std=c++17",
        "-ftz=true",
        "-arch=sm_86",
        "--device-as-default-execution-space",
    ]
    assert any(option.endswith("cupy/_core/include") for option in options)


def _variants() -> list[tuple[str, tuple[str, ...]]]:
    """Every kernel file with every set of options that the product launches it with."""
    return [
        variant
        for name in MODULES
        for variant in import_module(f"das_gpu.backends.{name}").VARIANTS
    ]


def _some(variants: list[tuple[str, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...]]]:
    """The first and the last variant of each kernel file."""
    first = {source: (source, options) for source, options in reversed(variants)}
    last = {source: (source, options) for source, options in variants}
    return [*first.values(), *last.values()]


@pytest.mark.slow
@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_kernels_compile_within_their_budget(arch: str) -> None:
    # All variants where spills are counted; elsewhere the compiler is the same, and two of each
    # file show that nothing in the text is refused.
    variants = _variants() if arch in UNSPILLED else _some(_variants())
    assert variants
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda variant: nvrtc.resources(variant[0], variant[1], arch), variants)
        )
    over = [
        f"{name} in {source} {' '.join(options)}: {needs}"
        for (source, options), kernels in zip(variants, found, strict=True)
        for name, needs in kernels.items()
        if needs.shared_bytes > MOST_STATIC_SHARED
        or (arch in UNSPILLED and needs.spill_store_bytes + needs.spill_load_bytes > 0)
    ]
    assert not over, "\n".join(over)


def test_no_kernel_file_is_without_a_variant() -> None:
    files = {path.name for path in kernel_folder().glob("*.cu")}
    assert files == {source for source, _ in _variants()}
