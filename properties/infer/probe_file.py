"""The file that `moeracle infer --probe-hardware` writes, and what is read out of it (docs/infer.md has the format)."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch

from moeracle.files import FIRST_ERROR, STRICT, from_base64, parse_json, read_bytes, unpack
from moeracle.ref.errors import require, unknown

from .dot_facts import Answers, facts_of, fits
from .dot_probes import VERSION, Questions, questions

FORMAT = 1
KIND = "moeracle probe"
DTYPES = ("bf16", "fp16")
MOST_SECTIONS = 64
Ask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
CLOSE = 3  # models shown beside the best


@dataclass(frozen=True)
class Section:
    """One instruction's answers, as a file holds them."""

    instruction: str
    K: int
    dtype: str
    questions: str
    answers: dict[str, str]

    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True)
class ProbeFile:
    """What a file holds; `read` is what was read out of it where it was written."""

    format: int
    kind: str
    questions_version: int
    machine: dict[str, str]
    sections: Annotated[list[Section], FIRST_ERROR]
    read: Any = None

    __pydantic_config__: ClassVar[Any] = STRICT


def sequential(a: torch.Tensor, w: torch.Tensor, acc: torch.Tensor) -> torch.Tensor:
    """Return acc + sum_k a w as plain fp32 torch adds it, one product after another: what a CPU answers."""
    total = acc.clone()
    for k in range(a.shape[1]):
        total = total + a[:, k].float() * w[:, k].float()
    return total


def ask_all(instruction: str, K: int, dtype: str, ask: Ask) -> dict[str, Any]:
    """Put every question to one instruction; return its section of the file.

    Args:
        instruction: what it is called, e.g. "tl.dot 16x16x16" or "v_dot2_f32_bf16".
        K: products it adds.
        dtype: "bf16" or "fp16".
        ask: a, w [P, K] and acc [P] to fp32 [P], on the CPU.
    """
    asked = questions(dtype, K)
    groups = {}
    for name, (a, w, acc) in asked.items():
        out = ask(a, w, acc)
        fits_form = out.dtype == torch.float32 and out.shape == acc.shape
        require(fits_form, f"{instruction}: returned {out.dtype} {list(out.shape)}, must be float32 {list(acc.shape)}")
        groups[name] = base64.b64encode(zlib.compress(out.contiguous().numpy().tobytes(), 9)).decode()
    return {"instruction": instruction, "K": K, "dtype": dtype, "questions": digest(asked), "answers": groups}


def digest(asked: Questions) -> str:
    """Return a digest of the operands, so that a file is only read beside the questions that it answers."""
    h = hashlib.sha256()
    for name, parts in asked.items():
        h.update(name.encode())
        for part in parts:
            h.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


def content(machine: dict[str, str], sections: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a whole file's content: machine is gpu, architecture, torch, triton, driver, system."""
    return {"format": FORMAT, "kind": KIND, "questions_version": VERSION, "machine": machine, "sections": sections}


def read_probe(path: Path) -> dict[str, Any]:
    """Read a file and check it.

    Raises:
        ValueError: in one line: no file, no JSON, another format version, other questions, a damaged section.
    """
    where, data = f"probe file: {path}", read_bytes(path, "probe file")
    found = parse_json(data, dict[str, Any], where)
    kind = found.get("kind")
    require(kind == KIND, f"probe file: {path} is not one that --probe-hardware wrote (kind {kind!r})")
    version = found.get("format")
    require(version == FORMAT, f"probe file: got format {version!r} in {path}, must be {FORMAT}; probe again")
    asked = found.get("questions_version")
    require(asked == VERSION, f"probe file: {path} answers questions {asked!r}, must be {VERSION}; probe again")
    sections = parse_json(data, ProbeFile, where).sections
    require(len(sections) <= MOST_SECTIONS, f"{where} has {len(sections)} sections, must have at most {MOST_SECTIONS}")
    return found


def answers_of(section: dict[str, Any]) -> Answers:
    """Return a section's answers by group.

    Raises:
        ValueError: in one line: an unknown dtype, other questions, a group that is missing or damaged.
    """
    name, K, dtype = section["instruction"], section["K"], section["dtype"]
    require(name.isprintable(), f"probe file: got instruction {name!r}, must be printable, on one line")
    if dtype not in DTYPES:
        raise unknown(f"dtype of {name}", dtype, DTYPES)
    require(2 <= K <= 64, f"probe file: {name} has K={K!r}, must be 2 to 64")
    asked = questions(dtype, K)
    same = section["questions"] == digest(asked)
    require(same, f"probe file: {name} answers other questions than these; probe again")
    answers: Answers = {}
    for group, (_, _, acc) in asked.items():
        where = f"probe file: {name}'s answers to {group}"
        require(group in section["answers"], f"probe file: {name} has no answers to {group}")
        data = unpack(from_base64(section["answers"][group], where), "zlib", 4 * len(acc), where)
        require(len(data) == 4 * len(acc), f"probe file: {name} answers {len(data) // 4} of {len(acc)} of {group}")
        answers[group] = torch.frombuffer(bytearray(data), dtype=torch.float32)
    return answers


def read_out(section: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a section, and the models that predict it best."""
    answers = answers_of(section)
    dtype, K = section["dtype"], section["K"]
    ranked = fits(dtype, K, answers)
    exact = [name for name, share, _ in ranked if share == 1.0]
    close = [{"model": name, "share": round(share, 6), "by_group": groups} for name, share, groups in ranked[:CLOSE]]
    return {"instruction": section["instruction"], "K": K, "dtype": dtype, "facts": facts_of(dtype, K, answers),
            "models": exact, "closest": close}  # fmt: skip
