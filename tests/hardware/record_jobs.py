"""The jobs of record.py, one process each: launch, read the compiled code, replay at once, and if it fails look for more.

("case", kernel, store, tile, texts)    a portable GEMM with a tile
("hopper", tile, texts)                 a Hopper GEMM with a tile; texts are of padded_gemm or grouped_gemm
("layer", layer, texts)                 the Hopper layer with both tiles
("entry", name, store, texts)           a registered kernel under the schedule that it declares for the case
("sum", store, texts)                   moe_sum, on cases of moe_unpermute
("dots", what, dtype)                   raw instructions, record_dots.py
"""

import os
import re
import subprocess
import traceback
from functools import cache
from pathlib import Path

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
import torch
import triton

import moeracle.kernels.decode_triton as decode_triton
import moeracle.kernels.grouped_gemm_triton as grouped_triton
import moeracle.kernels.int4_linear_triton as linear_triton
import moeracle.kernels.int8_lm_head_triton as lm_head_triton
import moeracle.kernels.moe_sum_triton as sum_triton
import moeracle.kernels.padded_gemm_triton as padded_triton
import moeracle.kernels.tiny_dot_triton as tiny_triton
import moeracle.kernels.unpermute_triton as unpermute_triton
from moeracle.kernels import schedules, sum_orders
from moeracle.kernels.hopper_cases import sizes_of
from moeracle.kernels.hopper_moe import hopper_grouped_gemm, hopper_padded_gemm, moe_w4a16_hopper
from moeracle.kernels.hopper_tiles import Layer, to_fields
from moeracle.kernels.tiles import Tile
from moeracle.properties.case import Case
from moeracle.properties.recordings import STORES, Entry
from moeracle.properties.replay import replay
from moeracle.target import load_target

torch.set_num_threads(1)
DEVICE = "cuda"
LAST = {}  # the last compiled kernel of each function since a launch began
ALLOCATES = [linear_triton, lm_head_triton, tiny_triton, unpermute_triton, sum_triton, grouped_triton, padded_triton]
ALLOCATES += [decode_triton]  # modules whose kernels store whatever dtype their output has


def watch():
    """Keep the last compiled kernel of each function."""
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def kept(self, *args, **kwargs):
        compiled = run(self, *args, **kwargs)
        LAST[self.fn.__name__] = compiled
        return compiled

    JITFunction.run = kept


watch()


class Fp32Outputs:
    """Stands for torch in a kernel's module: what it allocates is fp32, so that the accumulator itself is stored."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *shape, dtype=None, device=None):
        return torch.empty(*shape, dtype=torch.float32, device=device)

    def zeros(self, *shape, dtype=None, device=None):
        return torch.zeros(*shape, dtype=torch.float32, device=device)


def launched(fn, store):
    """Call fn and return what it stored, by stage; with store fp32 its module allocates fp32."""
    LAST.clear()
    for module in ALLOCATES:
        module.torch = Fp32Outputs() if store == "fp32" else torch
    try:
        out = fn()
    finally:
        for module in ALLOCATES:
            module.torch = torch
    torch.cuda.synchronize()
    return out if isinstance(out, dict) else {"out": out}


def facts_of(names, tile=None):
    """What the compiler made of these kernels: instructions, warps, how each tl.sum is laid out, operands of tl.dot."""
    found, order, warps = [], [], []
    for name in names:
        ptx, ir = LAST[name].asm["ptx"], LAST[name].asm["ttgir"]
        mma = sorted(set(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)[.\w:]*", ptx)))
        found += [f"{f} x{ptx.count(f)}" for f in mma] or [f"fma.rn.f32 x{ptx.count('fma.rn.f32')}"]
        order += [f"{name} {s.size}: {s.registers} {s.lanes} {s.warps}" for s in laid_out(ir) if s.size > 1]
        order += sorted(set(re.findall(r"opIdx = \d, parent = #\w+, kWidth = \d+", ir)))
        warps.append(LAST[name].metadata.num_warps)
    facts = {"instructions": found, "num_warps": warps[0], "order": "; ".join(order), "launches": names}
    if isinstance(tile, Tile):
        facts |= {"tile": [tile.block_m, tile.block_n, tile.block_k], "num_stages": tile.num_stages}
    elif isinstance(tile, Layer):
        facts["tile"] = to_fields(tile)
    elif tile is not None:
        facts["tile"] = to_fields(Layer(tile, tile))["gemm1"]
    return facts


def laid_out(ir):
    try:
        return sum_orders.sums(ir)
    except ValueError:
        return []


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
    name = "hopper_gemm_kernel" if "hopper_gemm_kernel" in LAST else "hopper_few_kernel"
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
    out = launched(lambda: kernel.fn(*problem.args.values()), store)
    return name, "", store, text, plain, facts_of(list(LAST)), out


def slots(problem, store):
    y, weights, inv = (problem.args[name] for name in ("y", "topk_weights", "inv"))
    ids = torch.zeros_like(weights, dtype=torch.int32)
    out = launched(lambda: sum_triton.moe_sum(y[inv.long()], weights, ids), store)
    return "moe_sum", "", store, schedules.SUM_ALONE, "grouped", facts_of(["moe_sum_kernel"]), out


KINDS = {"case": case, "hopper": hopper, "layer": layer, "entry": entry, "sum": slots}


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


def finished(fields, tensors):
    """Replay on the CPU (many processes with tiny kernels would only wait for the GPU); search where bits differ."""
    recorded = Entry(**fields)
    tensors = {k: v.cpu() for k, v in tensors.items() if v is not None}
    assert tensors["out"].dtype == STORES[recorded.store]
    seen = replay(recorded, tensors)
    others = [] if seen.ok or recorded.kind == "dots" else alternatives(recorded, tensors, seen.equal)
    return fields, tensors, seen.equal, seen.total, seen.first, others


def alternatives(recorded, tensors, equal):
    """List changes of the schedule that predict more, the best first."""
    text, found = recorded.schedule, []
    changes = [("-sequential", "-pairwise"), ("-sequential", "-halves"), ("-sequential", "-reversed")]
    changes += [("-halves", "-pairwise"), ("-halves", "-sequential"), ("fma", "mul_add"), ("/fused", ""), ("held1", "")]
    changes += [("/biasfused", ""), ("join=halves", "join=sequential"), ("join=halves", "join=pairwise")]
    changes += [("join=sequential", "join=pairwise"), ("join=pairwise", "join=sequential"), ("fma", "fma.rz")]
    changes += [("p8/bits1.2.16.4.8", ""), ("bits1.2.16.32.4.8", ""), ("p4", ""), ("-pairwise", "-sequential")]
    tried = {text.replace(old, new).replace("//", "/").rstrip("/") for old, new in changes}
    tried |= {t.replace(old, new).replace("//", "/").rstrip("/") for t in list(tried) for old, new in changes}
    for other in sorted(tried - {text}):
        try:
            seen = replay(recorded, tensors, other)
        except ValueError:
            continue
        if seen.equal > equal:
            found.append((seen.equal, other))
    return [f"{n}: {t}" for n, t in sorted(found, reverse=True)[:4]]


def header(command):
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
    major, minor = torch.cuda.get_device_capability()
    return {
        "gpu": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "driver": driver[0] if driver else "unknown",
        "torch": torch.__version__, "triton": triton.__version__, "cuda": str(torch.version.cuda), "command": command,
    }  # fmt: skip
