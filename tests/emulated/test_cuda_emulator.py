"""The emulator finds what it promises to find, and its instructions compute what the PTX ISA says."""

from __future__ import annotations

import cuda_emulator as emulator
import pytest
import torch
from cuda_emulator import KernelFault, buffers, call

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)

FAULTS = [  # of tests/support/cuda/faults.cu, in its order
    "",
    r"race: writes byte \d+ of shared memory, which block 0 thread 63 read at faults.cu:\d+ with no barrier between",
    r"race: writes byte \d+ of shared memory, which block 0 thread \d+ read",
    r"race: reads byte \d+ of shared memory, which block 0 thread \d+ wrote",
    r"thread 63 at faults.cu:\d+: out of bounds: writes bytes 256 to 259 of 256 in an array of shared memory",
    r"thread 58 at faults.cu:\d+: reads byte 20 of shared memory, which nobody has written",
    r"divergence: 32 of 64 threads wait at sync_threads, faults.cu:\d+, while block 0 thread 32 has returned",
    r"divergence: sync_threads while others wait at sync_threads, faults.cu:\d+",
    r"divergence: 16 of 32 threads wait at a shuffle, faults.cu:\d+, while block 0 thread 16 waits at sync_threads",
    r"reads byte \d+ of shared memory, the target of a cp.async of block 0 thread \d+ at .* that was not waited for",
    r"reads byte \d+ of shared memory, the target of a cp.async of block 0 thread \d+ at .* that was not waited for",
    r"reads byte \d+ of shared memory, which (nobody has written|block 0 thread \d+ wrote)",
    r"returns before it waited for its cp.async",
    r"thread 63 at .*: out of bounds: reads bytes 256 to 259 of 256 in an array of input",
    r"reads byte \d+ of output, which nobody has written",
    r"out of bounds: writes bytes -\d+ to -\d+ of 512 in an array of output",
    r"block 1 thread (\d+) .*: race: writes byte \d+ of output, which block 0 thread \1 wrote",
    r"misaligned: reads 16 bytes at byte 4 of shared memory",
]


@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_planted_faults_are_found(fault):
    x, out = torch.arange(64.0), torch.zeros(128)
    if not FAULTS[fault]:
        with buffers({"output": out}, input=x):
            call("planted_fault", fault, x, out)
        assert torch.equal(out, (x.flip(0) + x).repeat(2))
        return
    with pytest.raises(KernelFault, match=FAULTS[fault]) as found, buffers({"output": out}, input=x):
        call("planted_fault", fault, x, out)
    assert str(found.value).startswith("planted: ")


@pytest.mark.parametrize("barriers", [1, 2**16, 2**16 + 1])
def test_barriers_are_counted_without_end(barriers):
    out = torch.zeros(1)
    with buffers({"output": out}):
        call("pass_over_barriers", barriers, 0, out)
    assert out.item() == 1.0
    with pytest.raises(KernelFault, match="race"), buffers({"output": out}):
        call("pass_over_barriers", barriers, 1, out)


def test_outputs_must_be_written_and_inputs_must_not():
    x, out = torch.arange(64.0), torch.zeros(129)
    with (
        pytest.raises(KernelFault, match="byte 512 of output output was not written"),
        buffers({"output": out}, input=x),
    ):
        call("planted_fault", 0, x, out)
    with (
        pytest.raises(KernelFault, match=r"writes byte \d+ of output, which is an input"),
        buffers(output=out, input=x),
    ):
        call("planted_fault", 0, x, out)
    with pytest.raises(KernelFault, match="in no registered buffer"), buffers(input=x):
        call("planted_fault", 0, x, out)


@pytest.mark.parametrize("form", ["ldmatrix and ldmatrix_trans", "ldmatrix of [n][k]", "registers"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_of_16_bit_values(dtype, form):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 9, shape, generator=generator).to(dtype) for shape in [(16, 32), (32, 16)])
    stored = b.t().contiguous() if form.endswith("[n][k]") else b
    c = torch.empty(16, 16)
    number = ["ldmatrix and ldmatrix_trans", "ldmatrix of [n][k]", "registers"].index(form)
    with buffers({"c": c}, a=a, b=stored):
        call("check_product", emulator.SCALARS[dtype], a, stored, number, c)
    assert torch.equal(c, a.float() @ b.float())  # sums of small integers are exact


def test_products_in_tf32():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-1024, 1025, shape, generator=generator).float() for shape in [(16, 32), (32, 16)])
    a[0, 0], b[0, 0] = 2049.0, 1.0  # between 2048 and 2050 of TF32's 11 bits: away from zero
    c, rounded = torch.empty(16, 16), a.clone()
    rounded[0, 0] = 2050.0
    with buffers({"c": c}, a=a, b=b):
        call("check_product", 0, a, b, 0, c)
    assert torch.equal(c, (rounded.double() @ b.double()).float())


def test_shuffles_and_sums():
    x, out = torch.randn(64, generator=torch.Generator().manual_seed(0)), torch.empty(6, 64)
    with buffers({"out": out}, x=x):
        call("check_shuffles", x, out)
    warps, lane = x.view(2, 32), torch.arange(32)
    down, up = (lane + 4).where(lane < 28, lane), (lane - 4).where(lane >= 4, lane)
    for row, source in enumerate([lane * 0 + 3, lane ^ 5, down, up]):
        assert torch.equal(out[row].view(2, 32), warps[:, source])
    torch.testing.assert_close(out[4].view(2, 32), warps.sum(1, keepdim=True).expand(2, 32))
    torch.testing.assert_close(out[5], x.sum().expand(64))
    assert (out[5] == out[5, 0]).all()


def test_shared_memory_of_a_cluster():
    out = torch.empty(8, 32)
    with buffers({"out": out}):
        call("check_neighbours", True, True, out)
    blocks = torch.arange(8)
    source = blocks // 4 * 4 + (blocks + 1) % 4
    assert torch.equal(out, 100.0 * source[:, None] + 31.0 - torch.arange(32))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (False, True, r"reads byte 124 of shared memory, which nobody has written"),
        (True, False, r"race: writes byte \d+ of shared memory, which block 3 thread \d+ read"),
    ],
)
def test_a_missing_barrier_of_a_cluster(before, after, words):
    out = torch.empty(8, 32)
    with pytest.raises(KernelFault, match=words), buffers({"out": out}):
        call("check_neighbours", before, after, out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_that_of_torch(dtype):
    exponents = torch.arange(0, 2**31, 2**17 + 97, dtype=torch.int32)
    bits = torch.cat([exponents, exponents | -(2**31)])
    x = torch.cat(
        [bits.view(torch.float32), torch.tensor([1.0, 65519.9, 65520.0, 2.0**-25, 3 * 2.0**-25, float("inf")])]
    )
    for step in (2**12, 2**15):  # ties of each format
        x = torch.cat(
            [x, torch.arange(0x38000000, 0x38000000 + 64 * step, step, dtype=torch.int32).view(torch.float32)]
        )
    out, back = torch.empty(len(x), dtype=dtype), torch.empty(len(x))
    with buffers({"out": out, "back": back}, x=x):
        call("check_rounding", emulator.SCALARS[dtype], x, len(x), out, back)
    torch.testing.assert_close(out, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(back, out.float(), rtol=0, atol=0, equal_nan=True)
