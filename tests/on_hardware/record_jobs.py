"""The jobs of record.py, one process each: launch, read the compiled code, replay at once, and if it fails look for more.

("case", kernel, store, tile, texts)    a portable GEMM with a tile
("hopper", tile, texts)                 a Hopper GEMM with a tile; texts are of padded_gemm or grouped_gemm
("layer", layer, texts)                 the Hopper layer with both tiles
("entry", name, store, texts)           a registered kernel under the schedule that it declares for the case
("lm_head", name, store, texts)         int8_lm_head by either path
("sum", store, texts)                   moe_sum, on cases of moe_unpermute
("dots", what, dtype)                   raw instructions, record_dots.py
"""

import importlib
import os
import re
import traceback
from functools import cache
from pathlib import Path

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
import torch
from record_launch import LAST, Remembers, facts_of, launched
from record_replay import finished

import moeracle.kernels.triton.decode_gemm as decode_triton
import moeracle.kernels.triton.grouped_gemm as grouped_triton
import moeracle.kernels.triton.int4_linear as linear_triton
import moeracle.kernels.triton.int8_lm_head as lm_head_triton
import moeracle.kernels.triton.moe_sum as sum_triton
import moeracle.kernels.triton.padded_gemm as padded_triton
from moeracle.kernels import case_schedules, choose
from moeracle.kernels.hopper.cases import sizes_of
from moeracle.kernels.hopper.moe_w4a16 import hopper_grouped_gemm, hopper_padded_gemm, moe_w4a16_hopper
from moeracle.kernels.registry import LM_HEAD_ON_A_MATRIX_UNIT
from moeracle.kernels.triton import schedules
from moeracle.kernels.triton.tiles import Tile
from moeracle.properties.cases.case import Case
from moeracle.target.load import load_target

torch.set_num_threads(1)
DEVICE = "cuda"

PORTABLE = {
    "grouped_gemm": lambda a, tile, p: grouped_triton.grouped_gemm(*a, config=tile),
    "int4_linear": lambda a, tile, p: linear_triton.int4_linear(*a, config=tile),
    "padded_gemm": lambda a, tile, p: padded_triton.padded_gemm(*a, block_size=p.case.B, config=tile),
    "decode_gemm": lambda a, tile, p: decode_triton.decode_gemm(a[0], a[1], p.truth["topk_ids"], config=None),
}


def case(problem, kernel, store, tile):
    tile = Tile(*tile) if tile else None
    out = launched(lambda: PORTABLE[kernel](list(problem.args.values()), tile, problem), store)
    G = problem.args["w"].G
    text = schedules.decode_schedule(G) if tile is None else schedules.gemm_schedule(tile, problem.case.zero)
    size = "x".join(map(str, (tile.block_m, tile.block_n, tile.block_k))) if tile else "t256"
    return kernel, size, store, text, "grouped", facts_of([f"{kernel}_kernel"], tile), out


def hopper(problem, tile):
    c, args = problem.case, list(problem.args.values())
    fitted = tile.fit(sizes_of(c.N, c.K, c.G))
    if fitted != tile:
        raise ValueError(f"{tile} becomes {fitted} on {c}: the case does not keep it")
    if c.op == "grouped_gemm":
        out = launched(lambda: hopper_grouped_gemm(*args, config=tile), c.dtype)
    else:
        out = launched(lambda: hopper_padded_gemm(*args, block_size=c.B, config=tile), c.dtype)
    name = next(name for name in LAST if name.startswith("hopper"))
    return name.removesuffix("_kernel"), str(tile), c.dtype, tile.schedule(), "grouped", facts_of([name], tile), out


def layer(problem, tiles):
    c, args = problem.case, list(problem.args.values())
    sizes = sizes_of(2 * c.I, c.H, c.G), sizes_of(c.H, c.I, c.G)
    texts = [t.fit(s).schedule() for t, s in zip((tiles.gemm1, tiles.gemm2), sizes, strict=True)]
    out = launched(lambda: moe_w4a16_hopper(*args, config=tiles, return_stages=True), c.dtype)
    names = [n for n in LAST if n.startswith("hopper") or n == "moe_sum_kernel"]
    text = f"{texts[0]},gemm2_schedule={texts[1]},sum_schedule={schedules.SLOTS}"
    return "hopper_layer", f"{tiles.gemm1}+{tiles.gemm2}", c.dtype, text, "grouped", facts_of(names, tiles), out


@cache
def registered(name):
    (kernel,) = load_target(f"moeracle.kernels:{name}").kernels
    return kernel


def entry(problem, name, store):
    kernel = registered(name)
    plain, _, text = kernel.contract_for(problem.case).name.partition(",schedule=")
    if not text:
        raise ValueError(f"{name} declares no schedule for {problem.case}")
    module = importlib.import_module(kernel.fn.__module__)
    gated = problem.case.op == "shared_expert" and "gate" in problem.case.flags
    if gated:
        module.torch = Remembers()
    try:
        out = launched(lambda: kernel.fn(*problem.args.values()), store)
        if gated:
            out = {**out, "dot": module.torch.fp32[:, None]}
    finally:
        if gated:
            module.torch = torch
    return name, "", store, text, plain, facts_of(list(LAST)), out


def slots(problem, store):
    y, weights, inv = (problem.args[name] for name in ("y", "topk_weights", "inv"))
    ids = torch.zeros_like(weights, dtype=torch.int32)
    out = launched(lambda: sum_triton.moe_sum(y[inv.long()], weights, ids), store)
    return "moe_sum", "", store, schedules.SUM_ALONE, "grouped", facts_of(["moe_sum_kernel"]), out


def lm_head(problem, name, store):
    """int8_lm_head by the kernels of every GPU, or (name ends in .hopper) as it is called here."""
    fn = "choose:int8_lm_head" if name.endswith(".hopper") else "triton.int8_lm_head:int8_lm_head_portable"
    text = case_schedules.read(case_schedules.lm_head, fn)(problem.case)
    kernel = choose.int8_lm_head if name.endswith(".hopper") else lm_head_triton.int8_lm_head_portable
    if not text:
        raise ValueError(f"{fn}: nothing could be read for {problem.case}")
    out = launched(lambda: kernel(*problem.args.values()), store)
    if name.endswith(".hopper") != ("hopper_lm_head_kernel" in LAST):
        raise ValueError(f"{name}: launched {list(LAST)} for {problem.case}")
    return name, "", store, text, LM_HEAD_ON_A_MATRIX_UNIT, facts_of(list(LAST)), out


KINDS = {"lm_head": lm_head, "case": case, "hopper": hopper, "layer": layer, "entry": entry, "sum": slots}


def run(job):
    """Return (entry fields, tensors, equal, total, first, what else would predict it) of each launch, and errors."""
    if job[0] == "dots":
        import record_dots

        return record_dots.dots(*job[1:]), []
    kind, *how, texts = job
    done, errors = [], []
    for text in texts:
        try:
            done.append(one(kind, how, text))
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {str(error)[:300]} ({Path(at.filename).name}:{at.lineno})"
            errors.append(f"{kind} {how} {text}: {said}")
    return done, errors


def one(kind, how, text):
    """Launch one case and return it replayed."""
    problem = Case.parse(text).build(DEVICE)
    kernel, size, store, schedule, contract, facts, out = KINDS[kind](problem, *how)
    name = ".".join(filter(None, (kernel, store, re.sub(r"\W+", "_", size), *text.split("/"))))
    fields = {
        "name": name, "kind": "case", "kernel": kernel, "schedule": schedule, "store": store, "case": text,
        "contract": contract, "facts": facts,
    }  # fmt: skip
    return finished(fields, out)
