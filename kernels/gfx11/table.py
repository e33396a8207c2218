"""Which gfx11 instructions have a model: docs/gfx11-instructions.md, by `python -m moeracle.kernels.gfx11.table`."""

from __future__ import annotations

import importlib
import re
from typing import Any

from .core import formulas
from .decode import INSTALL, decode
from .program import assemble

FORMS = {
    "VOP1": "one vector source", "VOP2": "two vector sources", "VOPC": "vector comparisons",
    "VOP3": "three vector sources, and what else has no shorter form", "VOP3P": "packed pairs, dot products, WMMA",
    "VOP3SD": "with a scalar destination beside",
    "SOP1": "one scalar source", "SOP2": "two scalar sources", "SOPC": "scalar comparisons", "SOPK": "with a constant",
    "SOPP": "control", "SMEM": "scalar memory", "DS": "LDS", "GLOBAL": "global memory", "FLAT": "generic memory",
    "SCRATCH": "scratch", "MUBUF": "memory through a buffer descriptor",
}  # fmt: skip
HEAD = """# gfx11 instructions that have a model

Made by `python -m moeracle.kernels.gfx11.table > docs/gfx11-instructions.md` from the core and tinygrad's list.
One without a model stops a run where it is reached, with its name, address and source line; `moeracle kernels scan
FILE` lists those of a code object beforehand. DPP16 and DPP8 go with every vector instruction that takes them; VOPD
pairs are two of them. `s_denorm_mode`, `s_round_mode` and `s_setreg` of the mode are taken where they set what holds
anyway; clocks are counters; `s_trap` and `s_sethalt` stop the run. Buffers: no swizzled addresses, no `tfe`.
Images, exports, typed buffers, waves of 64 lanes and the encodings of gfx12, gfx10 and CDNA are not covered.
"""


def encode(form: str, name: str, **fields: Any) -> bytes:
    """Return an instruction's bytes.

    Args:
        form: a class of tinygrad's gfx11 formats, e.g. "VOP1_DPP16".
        name: in the list of that format, e.g. "V_MOV_B32_E32".
        fields: registers as source codes (256 is v0), other fields as numbers; what is left out has its usual value.
    Raises:
        ImportError: tinygrad is not installed.
    """
    try:
        ins, dsl = (
            importlib.import_module(f"tinygrad.{m}") for m in ("runtime.autogen.amd.rdna3.ins", "renderer.amd.dsl")
        )
    except ImportError as error:
        raise ImportError(INSTALL) from error
    kind, group, raw = getattr(ins, form), getattr(ins, f"{form.split('_')[0]}Op"), 0
    for part, how in kind._fields:
        value = getattr(group, name) if part == "op" else fields.get(part)
        raw = how.set(
            raw,
            dsl.src[value]
            if isinstance(value, int) and isinstance(how, (dsl.SrcField, dsl.AlignedSGPRField))
            else value,
        )
    return int(raw).to_bytes(kind._base_size, "little")


def covered() -> dict[str, tuple[list[str], list[str]]]:
    """Return, for each format, the mnemonics with a model and those without."""
    ins = importlib.import_module("tinygrad.runtime.autogen.amd.rdna3.ins")
    found: dict[str, tuple[list[str], list[str]]] = {}
    short: set[str] = set()
    for form in FORMS:
        names: dict[str, str] = {}
        for op in getattr(ins, f"{form}Op"):
            plain = re.sub(r"_E(32|64)$", "", op.name)
            if form != "VOP3" or plain not in short:
                names[plain] = op.name
        short |= set(names)
        found[form] = ([], [])
        for plain, name in names.items():
            found[form][0 if _has_model(form, name) else 1].append(plain.lower())
    return found


def _has_model(form: str, name: str) -> bool:
    for kind in (form, f"{form}_LIT", f"{form}_SDST"):
        try:
            body = decode(encode(kind, name) + encode("SOPP", "S_ENDPGM", simm16=0))
            if not assemble(body, formulas()).missing:
                return True
        except (AttributeError, ValueError, RuntimeError, TypeError):
            continue
    return name == "S_CODE_END"


def page() -> str:
    """Return the page's text."""
    parts = [HEAD]
    for form, (known, missing) in covered().items():
        parts.append(f"## {form}: {FORMS[form]}\n\n{len(known)} of {len(known) + len(missing)} have a model.\n")
        parts.append(f"With: {_listed(known)}.\n")
        if missing:
            parts.append(f"Without: {_listed(missing)}.\n")
    return "\n".join(parts)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"


if __name__ == "__main__":
    print(page(), end="")
