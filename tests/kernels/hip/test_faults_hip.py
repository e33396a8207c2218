"""Every class of fault planted once and reported with its line and thread; kernels that are right are left alone."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import sys
from pathlib import Path

import pytest
import torch

from moeracle.kernels.hip.runtime.faults import KernelFault

SOURCE = Path(__file__).with_name("faults.hip")
MARK = re.compile(r"// (fault|other): (\w+)$")
LINES = {m.groups(): i for i, text in enumerate(SOURCE.read_text().splitlines(), 1) if (m := MARK.search(text))}
# kernel → what the message says, and the thread of which block
PLANTED = {
    "read_past_end": ("out-of-bounds read of 4 bytes at byte 256, 0 past the end, of argument 0 (256", "(63,0,0)"),
    "read_before_start": ("out-of-bounds read of 4 bytes at 12 bytes before the start of argument 0", "(0,0,0)"),
    "write_past_end": ("out-of-bounds write of 4 bytes at byte 256, 0 past the end, of argument 1", "(40,0,0)"),
    "wide_read_past_end": ("out-of-bounds read of 16 bytes at byte 256, 0 past the end, of argument 2", "(16,0,0)"),
    "straddles_end": ("out-of-bounds read of 8 bytes at byte 248, its last 4 past the end, of argument 2", "(31,0,0)"),
    "write_to_static": ("write of 4 bytes to a static variable; kernels keep no state", "(0,0,0)"),
    "null_pointer": ("out-of-bounds read of 4 bytes far from every argument", "(0,0,0)"),
    "write_to_const": ("write of 4 bytes to argument 0 (256 bytes), which is const", "(0,0,0)"),
    "misaligned": ("misaligned access of 8 bytes, 4 past a multiple of 8", "(0,0,0)"),
    "shared_past_end": ("out-of-bounds read of 4 bytes at byte 256, 0 past the end, of shared tile (256", "(63,0,0)"),
    "dynamic_past_end": ("out-of-bounds write of 4 bytes at byte 256, 0 past the end, of shared tile", "(63,0,0)"),
    "uninitialized": ("uninitialized shared memory: read of 4 bytes at byte 68 of tile", "(46,0,0)"),
    "uninitialized_sum": ("uninitialized shared memory: read of 4 bytes at byte 0 of tile", "(0,0,0)"),
    "uninitialized_atomic": ("uninitialized shared memory: write of 4 bytes at byte 0 of counter", "(0,0,0)"),
    "uninitialized_in_second_block": ("uninitialized shared memory: read of 4 bytes at byte 0", "(0,0,0)"),
    "race_read": ("race in shared memory: read of 4 bytes at byte 0 of tile, written at faults.hip", "(32,0,0)"),
    "race_write": ("race in shared memory: write of 4 bytes at byte 128 of tile, read by the wave", "(32,0,0)"),
    "race_write_after_two_reads": ("race in shared memory: write of 4 bytes at byte 0 of tile, read by", "(32,0,0)"),
    "too_much_shared": ("shared memory: second makes it 65540 bytes, a block has 65536", "(0,0,0)"),
    "shuffle_without_some": (
        "divergent cross-lane operation: shfl_xor waits for thread (20,0,0), which has",
        "(0,0,0)",
    ),
    "shuffle_elsewhere": ("shfl_xor waits for thread (1,0,0), which waits at faults.hip", "(0,0,0)"),
    "another_shuffle_in_the_same_line": ("shfl waits for thread (1,0,0), which waits at faults.hip", "(0,0,0)"),
    "shuffle_against_barrier": ("shfl waits for thread (5,0,0), which waits at faults.hip", "(0,0,0)"),
    "shuffle_too_often": ("shfl_xor waits for thread (0,0,0), which has returned", "(1,0,0)"),
    "barrier_without_thread": ("divergent barrier: __syncthreads waits for thread (63,0,0), which has", "(32,0,0)"),
    "barrier_without_wave": ("divergent barrier: __syncthreads waits for thread (32,0,0), which has", "(0,0,0)"),
    "barrier_elsewhere": ("__syncthreads waits for thread (32,0,0), which waits at faults.hip", "(0,0,0)"),
    "hang": ("hang: the thread goes on and on", "(7,0,0)"),
}
RIGHT = ("table_and_stack", "whole_waves_apart", "one_wave_returns", "double_buffer", "halves_of_a_word", "counted")


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.arange(64.0) - 30, torch.full((64,), -1.0), torch.zeros(64, dtype=torch.int32)


def run(kernel, **options):
    x, out, words = operands()
    words = words[:63] if kernel.name == "straddles_end" else words
    dynamic = 256 if kernel.name.startswith("dynamic") else 0
    kernel.launch((2,), (64,), x, out, words, 0, shared=dynamic, **options)
    return out


def test_every_planted_kernel_is_expected():
    assert {name for kind, name in LINES if kind == "fault"} == set(PLANTED)


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_is_reported_with_its_line_and_thread(planted, name):
    what, thread = PLANTED[name]
    with pytest.raises(KernelFault) as caught:
        run(planted(name), steps=100_000)
    message = str(caught.value)
    assert message.startswith(f"faults.hip:{LINES['fault', name]}: "), message
    assert what in message
    block = "(1,0,0)" if "second_block" in name else "(0,0,0)"
    assert message.endswith(f"thread {thread} of block {block} of {name}"), message
    if ("other", name) in LINES:
        assert f"at faults.hip:{LINES['other', name]}" in message


def test_the_faulty_access_does_not_happen(planted):
    wide = torch.full((128,), -1.0)
    x, _, words = operands()
    with pytest.raises(KernelFault, match="argument 1"):
        planted("write_past_end").launch((1,), (64,), x, wide[:64], words, 0)
    assert (wide == -1).all()


def test_only_what_a_view_spans_may_be_touched(planted):
    wide = torch.arange(66.0)
    _, out, words = operands()
    planted("read_past_end").launch((1,), (64,), wide[:65], out, words, 0)
    assert torch.equal(out, wide[1:65])
    with pytest.raises(KernelFault, match="past the end"):
        planted("read_past_end").launch((1,), (64,), wide[:64], out, words, 0)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="memory below 2 GiB is asked for with a flag of x86-64")
def test_a_null_pointer_is_one_however_low_the_arguments_lie(planted):
    libc, pages = ctypes.CDLL(None), mmap.PAGESIZE
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    below_2_gib = 0x40  # MAP_32BIT
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | below_2_gib
    address = libc.mmap(None, pages, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    assert address < 2**31
    low = torch.frombuffer((ctypes.c_float * 64).from_address(address), dtype=torch.float32)
    _, out, words = operands()
    with pytest.raises(KernelFault, match="far from every argument"):
        planted("null_pointer").launch((2,), (64,), low, out, words, 0)
    with pytest.raises(KernelFault, match="byte 256, 0 past the end, of argument 0"):
        planted("read_past_end").launch((2,), (64,), low, out, words, 0)


def test_a_kernel_runs_again_after_a_fault(planted):
    for _ in range(3):
        with pytest.raises(KernelFault):
            run(planted("barrier_without_wave"))
        assert run(planted("counted"))[0] == sum(range(0, 64, 2))


@pytest.mark.parametrize("name", ["read_past_end", "uninitialized_sum", "race_read", "barrier_without_wave"])
def test_clang_reports_the_same(planted, monkeypatch, name):
    pytest.importorskip("ziglang", reason="moeracle[hip] is not installed")
    monkeypatch.setenv("MOERACLE_CXX", f"{sys.executable} -m ziglang c++")
    with pytest.raises(KernelFault, match=re.escape(PLANTED[name][0])) as caught:
        run(planted(name, CLANG=1))
    assert str(caught.value).startswith(f"faults.hip:{LINES['fault', name]}: ")


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_found_in_a_right_kernel(planted, name):
    forward, backward = run(planted(name)), run(planted(name), backward=True)
    assert torch.equal(forward, backward)
    assert not (forward == -1).all()


def test_values_of_right_kernels(planted):
    x = operands()[0]
    assert torch.equal(run(planted("double_buffer")), x.flip(0) * 6 + 15)
    assert run(planted("whole_waves_apart"))[31] == x[:32].sum()
    assert torch.equal(run(planted("halves_of_a_word")), torch.arange(64).view(2, 32).T.flatten().float())


def test_slow_fibers_report_the_same(planted):
    with pytest.raises(KernelFault, match="thread \\(46,0,0\\)"):
        run(planted("uninitialized", MOERACLE_UCONTEXT=1))
    assert run(planted("counted", MOERACLE_UCONTEXT=1))[1] == sum(range(1, 64, 2))
