"""What clang emits for a wide corpus: each instruction has a model, and is decoded as the one that clang printed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from moeracle.gfx11 import load
from moeracle.kernels.gfx11.code_object import BASE, kernel_names, kernel_of
from moeracle.kernels.gfx11.core import formulas
from moeracle.kernels.gfx11.decode import decode
from moeracle.kernels.gfx11.elf import read_elf
from moeracle.kernels.gfx11.load import SHIMS
from moeracle.kernels.gfx11.program import assemble
from moeracle.kernels.toolchain.compilers import compile_gfx

pytestmark = pytest.mark.usefixtures("toolchain")
HERE = Path(__file__).parent
SOURCES = ("wide.hip", "wide_arithmetic.hip", "wide_memory.hip", "buffers.hip", "corpus.hip", "hazards.hip")


def printed(asm: str) -> dict[str, list[str]]:
    """Return the mnemonics of each function of clang's text, without the encoding's suffix; a pair of VOPD is one."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in asm.splitlines():
        label, word = re.match(r"([A-Za-z_]\w*):", line), re.match(r"\t([vsbdgft]\w+)", line)
        if label:
            name = label[1]
        elif word and name:
            plain = re.sub(r"(_e32|_e64)?(_dpp)?$", "", word[1])
            found.setdefault(name, []).append("vopd" if " :: " in line else plain)
    return found


def without_padding(names: list[str]) -> list[str]:
    """Leave out what aligns the head of a loop, which the text has as .p2align."""
    return [name for name in names if name not in ("s_nop", "s_code_end")]


@pytest.mark.parametrize(
    ("compiler", "arch", "level"),
    [(None, "gfx1100", "-O1"), (None, "gfx1151", "-O3"), ("clang++-19", "gfx1151", "-O2")],
)
def test_every_instruction_has_a_model_and_its_name(
    toolchain: None, tmp_path: Path, compiler: str | None, arch: str, level: str
) -> None:
    if compiler and shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    mnemonics: set[str] = set()
    for source in SOURCES:
        built = tmp_path / f"{source}.hsaco"
        made = compile_gfx(HERE / source, arch, built, {}, flags=(level,), include=(SHIMS,), compiler=compiler)
        text, elf = printed(made.asm), read_elf(built, BASE)
        for name in kernel_names(elf):
            code = kernel_of(elf, built, name)
            body = decode(code.text, start=code.symbol.address)
            got = [one.name.lower() for one in body]
            assert not assemble(body, formulas()).missing, f"{source}: {code.shown}"
            assert without_padding(got) == without_padding(text[name]), f"{source}: {code.shown}"
            mnemonics |= set(got)
    assert len(mnemonics) > 400


def test_a_masked_copy_through_buffers() -> None:
    x, y = torch.arange(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    run = load(HERE / "buffers.hip", "masked_copy").launch(2, 32, x, y, 50)
    assert run.executed["BUFFER_LOAD_B32"] == run.executed["BUFFER_STORE_B32"] == 2
    assert y.tolist() == [*range(1, 51), *[0] * 14]


def test_a_buffer_larger_than_its_tensor_is_out_of_bounds() -> None:
    kernel = load(HERE / "buffers.hip", "masked_copy")
    with pytest.raises(IndexError, match=r"buffer_load_b32: lane 8 .* \(byte 32 of argument 0, 32 bytes\)"):
        kernel.launch(1, 32, torch.zeros(8), torch.zeros(32), 20)
