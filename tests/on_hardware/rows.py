"""Every row of docs/performance.md in one run on one H200: layers, whole steps and linears beside vLLM's compiled ops.

    PYTHONPATH=src MOERACLE_VLLM=FOLDER python3 -u tests/on_hardware/rows.py fixtures/hardware/h200/rows.json

FOLDER holds vLLM 0.33's CUDA wheel, unpacked. Both sides get the same tensors and take turns; a ratio is taken pair by
pair. Experts beyond the fourth have the weights of the first four at other addresses. Of each layer's outputs two
tokens are judged, of each linear's all. The file is written after every row; LIMIT in the environment ends the run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moeracle import judge_tensors
from moeracle.clients import CLIENTS, vllm_prepared
from moeracle.clients.packages import load_libraries
from moeracle.clients.vllm import STABLE, STABLE_MOE
from moeracle.files import write_atomically
from moeracle.kernels import tuned
from moeracle.kernels.bench.cases import MODELS, SHAPES, Shape
from moeracle.kernels.bench.layer_problem import LayerProblem
from moeracle.kernels.bench.timing import GraphTimer, Times, ceilings, compare, ratios
from moeracle.kernels.hopper.int4_linear import int4_linear_hopper
from moeracle.kernels.hopper.launch import KNOWN, UNKNOWN, run_gemm
from moeracle.kernels.hopper.moe_w4a16 import moe_w4a16_hopper
from moeracle.kernels.hopper.prepared_weight import PreparedWeight, prepare_weight
from moeracle.kernels.hopper.tiles.kinds import Tile, sizes_of
from moeracle.kernels.hopper.tiles.layers import Layer, layer_for, model_layer, to_fields
from moeracle.kernels.hopper.tiles.linear import linear_tile
from moeracle.ref.weights.weight import Int4Weight

START, LIMIT = time.time(), float(os.environ.get("LIMIT", "540"))
TOKENS = (1, 8, 64, 256, 1024, 4096, 4, 16, 512, 2048)  # in this order, where time is short
STEPS = (1, 16, 64)
LINEARS = (  # N, K of real models: Llama 3 8B and 70B, Qwen3 8B to 32B, Mistral, the tuned ones
    (9216, 4096), (4096, 2048), (2048, 4096), (1024, 2048), (28672, 4096), (4096, 14336), (6144, 4096), (4096, 4096),
    (5120, 5120), (10240, 8192), (8192, 8192), (7168, 2048), (24576, 4096), (4096, 12288),
)  # fmt: skip
ROWS = (1, 16, 64, 128, 256, 1024, 4096)
OWN = 4  # experts with weights of their own
ROUNDS = 9


def random_weight(E: int, N: int, K: int, G: int, seed: int) -> Int4Weight:
    """Return [E, N, K], exllama, scales 0.01 to 0.03."""
    draw = torch.Generator("cuda").manual_seed(seed)
    codes = torch.randint(0, 16, (E, N, K), generator=draw, device="cuda", dtype=torch.uint8)
    scale = (torch.rand(E, N, K // G, generator=draw, device="cuda") * 0.02 + 0.01).bfloat16()
    return Int4Weight.from_codes(codes, scale, layout="exllama")


def repeated(made: Any, E: int) -> Any:
    """Return a prepared weight whose experts are repeated until there are E."""
    many = {name: getattr(made, name) for name in ("words", "scale")}
    times = -(-E // OWN)
    return replace(made, **{n: t.repeat(times, *[1] * (t.ndim - 1))[:E].contiguous() for n, t in many.items()})


def timed(sides: dict[str, Any], seconds: float = 0.25) -> dict[str, Times]:
    """Return each side's times, taken in turn."""
    return compare(GraphTimer("cuda"), sides, ROUNDS, seconds)[0]


def beside(times: dict[str, Times], ours: str, theirs: list[str]) -> dict[str, Any]:
    """Return what a row says: ours, the best of theirs, and their ratio pair by pair."""
    best = min(theirs, key=lambda name: times[name].us)
    us = {name: round(of.us, 2) for name, of in times.items()}
    return {
        "us": us[ours],
        "peer": best,
        "peer_us": us[best],
        "ratio": round(ratios(times[ours], times[best]).us, 3),
        "all_us": us,
    }


def judged(what: str, *arguments: Any, **more: Any) -> str:
    """Return how outputs were judged."""
    try:
        verdict = judge_tensors(what, *arguments, **more)
    except Exception as error:
        return f"not judged: {str(error)[:160]}"
    return str(verdict.status)


def layers() -> Iterator[tuple[str, Shape, int]]:
    """Yield every layer and T, the tokens that matter most first."""
    for name, shape in (SHAPES | MODELS).items():
        for T in TOKENS:
            yield name, shape, T


def chosen(shape: Shape, T: int) -> list[Layer]:
    """Return the layers of tiles that a row times: what a launch takes, and what the model would choose."""
    up = sizes_of(2 * shape.I, shape.H, shape.G)
    found = (layer_for(T * shape.k, shape.E, up, torch.device("cuda")), model_layer(T * shape.k, shape.E, up))
    down = sizes_of(shape.H, shape.I, shape.G)
    return list(dict.fromkeys(Layer(one.gemm1.fit(up), one.gemm2.fit(down)) for one in found))


def compiled(job: tuple[int, int, int, int, int, Tile]) -> tuple[Any, int]:
    """Compile one GEMM, as it will be launched, in this process; return the job and its spills."""
    which, N, K, G, k, tile = job
    make = partial(torch.empty, device="cuda", dtype=torch.int32)
    sizes = sizes_of(N, K, G)
    words, pairs = make(1, sizes.slabs, sizes.padded_k // 64, 32, 4), make(1, sizes.slabs, -(-sizes.padded_k // G), 8)
    w = PreparedWeight(words, pairs, None, N, K, G, which == 0, torch.bfloat16, 2)
    x = torch.zeros(max(16, tile.block_m), K, device="cuda", dtype=torch.bfloat16)
    if which == 2:
        int4_linear_hopper(x, w, config=tile)
        torch.cuda.synchronize()
        return job, 0
    out = torch.empty(16, N // 2 if which == 0 else N, device="cuda", dtype=torch.bfloat16)
    blocks = make(16), make(16), torch.zeros(1, device="cuda", dtype=torch.int32)  # none is launched for real
    early = UNKNOWN if which == 0 else KNOWN
    made = run_gemm(x[:16], w, blocks, out, tile, top_k=k, block_size=tile.block_m, num_blocks=1, launch=early)
    torch.cuda.synchronize()
    return job, int(getattr(made, "n_spills", 0))


def jobs() -> dict[Any, None]:
    """Return every kernel to compile, in the order of rows."""
    found: dict[Any, None] = {}
    for _, s, T in layers():
        for layer in chosen(s, T):
            found[0, 2 * s.I, s.H, s.G, s.k, layer.gemm1] = None
            found[1, s.H, s.I, s.G, 1, layer.gemm2] = None
    for N, K in LINEARS:
        for T in ROWS:
            found[2, N, K, 128, 1, linear_tile(T, N, K)] = None
    return found


class Run:
    """What was measured so far, and the file that it goes to."""

    def __init__(self, path: str) -> None:
        self.path, self.found = Path(path), {"layers": [], "steps": [], "linears": []}
        self.spills: dict[str, int] = {}
        device = torch.cuda.get_device_name()
        import triton

        versions = {"torch": torch.__version__, "triton": triton.__version__}
        self.about = {"gpu": device, **versions, "peer": "vLLM 0.33.0's CUDA wheel", "ceilings": ceilings(GraphTimer("cuda"), "cuda"),
                      "command": "PYTHONPATH=src MOERACLE_VLLM=FOLDER python3 -u tests/on_hardware/rows.py fixtures/hardware/h200/rows.json"}  # fmt: skip
        print({name: round(value) for name, value in self.about["ceilings"].items()}, flush=True)

    def keep(self, kind: str, row: dict[str, Any]) -> None:
        self.found[kind].append(row)
        lines = {kind: ",\n  ".join(map(json.dumps, rows)) for kind, rows in self.found.items()}
        body = ",\n".join(f' "{kind}": [\n  {text}\n ]' for kind, text in lines.items())
        about = json.dumps({**self.about, "spills": self.spills, "seconds": round(time.time() - START)}, indent=1)
        write_atomically(self.path, f"{about[:-2]},\n{body}\n}}\n")
        said = {name: value for name, value in row.items() if name not in ("tiles", "all_us", "model_tiles")}
        print(f"[{time.time() - START:4.0f} s] {kind}: {said}", flush=True)

    def floor(self, nbytes: float, flops: float) -> float:
        return max(nbytes / self.about["ceilings"]["gbs"] / 1e3, flops / self.about["ceilings"]["tflops"] / 1e6)


def layer_rows(run: Run, name: str, shape: Shape, ready: Callable[[Any], None]) -> None:
    """Time one model's layers at every T, and its whole steps."""
    E, H, I, k, G = shape.E, shape.H, shape.I, shape.k, shape.G
    own13, own2 = random_weight(OWN, 2 * I, H, G, 1), random_weight(OWN, H, I, G, 2)
    up = repeated(prepare_weight(own13, gated=True, fold=True), E)
    down = repeated(prepare_weight(own2, fold=True), E)
    marlin = vllm_prepared.MarlinLayer(*(repeated(vllm_prepared.marlin_weight(w), E) for w in (own13, own2)))
    used_bytes = (2 * I * H + H * I) * (0.5 + 2 / G)
    for T in TOKENS:
        if time.time() - START > LIMIT:
            return
        layers = chosen(shape, T)
        for layer in layers:
            ready((0, 2 * I, H, G, k, layer.gemm1)), ready((1, H, I, G, 1, layer.gemm2))
        draw = torch.Generator("cuda").manual_seed(T)
        active = min(E, T * k)
        count = max(2, min(12, round(4e8 / (active * used_bytes)))) if T < 2048 else 2
        routed = []
        for _ in range(count):
            logits = torch.randn(T, E, generator=draw, device="cuda").bfloat16()
            weights, ids = torch.softmax(logits.float(), 1).topk(k, 1)
            weights = (weights / weights.sum(1, keepdim=True)).contiguous()
            routed.append((torch.randn(T, H, generator=draw, device="cuda").bfloat16(), weights, ids.int(), logits))
        problem = LayerProblem(up, down, [one[:3] for one in routed])
        sides: dict[str, Any] = {f"ours{i or ''}": problem.layer_calls(layer) for i, layer in enumerate(layers)}
        for block in vllm_prepared.near_block_sizes(T, k, E):
            aligned = [vllm_prepared.align(one[2], block, E) for one in routed]
            sides[f"marlin b{block}"] = [
                partial(marlin.aligned, one[0], one[1], blocks, block)
                for one, blocks in zip(routed, aligned, strict=True)
            ]
        x, weights, ids, _ = routed[0]
        some = slice(0, 2)
        stages = moe_w4a16_hopper(x, up, down, weights, ids, config=layers[0], return_stages=True)
        theirs = sides[f"marlin b{vllm_prepared.block_size(T, k, E)}"][0]()
        cut = lambda found: {n: v[: 2 * k] if n != "out" else v[:2] for n, v in found.items()}
        args = (x[some], own13, own2, weights[some].contiguous(), ids[some] % OWN)
        verdicts = {
            "ours": judged("moe_w4a16", cut(stages), *args, contract="grouped"),
            "peer": judged("moe_w4a16", cut(theirs), *args, contract=CLIENTS["vllm.fused_marlin_moe"].contract),
        }
        times = timed(sides)
        used = sum(int(one[2].unique().numel()) for one in routed) / count
        floor = run.floor(used * used_bytes, 6 * T * k * H * I)
        row = {"model": name, "T": T, "active": round(used, 1), "floor_us": round(floor, 2)}
        row |= beside(times, "ours", [n for n in sides if n.startswith("marlin")])
        row |= {"x_floor": round(row["us"] / floor, 3), "verdicts": verdicts, "tiles": to_fields(layers[0])}
        if len(layers) > 1:
            row |= {
                "model_over_table": round(ratios(times["ours"], times["ours1"]).us, 3),
                "model_tiles": to_fields(layers[1]),
            }
        run.keep("layers", row)
        if T in STEPS:
            try:
                run.keep("steps", step_row(name, shape, T, routed, up, down, marlin, layers[0]))
            except Exception as error:
                print(f"{name} step T={T}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        del problem, sides


def step_row(
    name: str, shape: Shape, T: int, routed: Any, up: Any, down: Any, marlin: Any, layer: Layer
) -> dict[str, Any]:
    """Time routing, alignment, layer and sum together."""
    k, problem = shape.k, LayerProblem(up, down, [one[:3] for one in routed])
    sides: dict[str, Any] = {"ours": problem.step_calls(layer, [one[3] for one in routed])}
    for block in vllm_prepared.near_block_sizes(T, k, shape.E):
        sides[f"vllm b{block}"] = [partial(marlin.step, x, logits, k, block) for x, _, _, logits in routed]
    got, theirs = sides["ours"][0](), sides[list(sides)[1]][0]()
    apart = ((got.float() - theirs.float()).norm() / theirs.float().norm()).item()
    times = timed(sides)
    return {"model": name, "T": T} | beside(times, "ours", list(sides)[1:]) | {"outputs_apart": round(apart, 5)}


def linear_row(run: Run, N: int, K: int, T: int, held: dict[str, Any]) -> dict[str, Any]:
    """Time one linear beside Machete, Marlin and cuBLAS."""
    if not held:
        copies = max(2, min(8, round(2e8 / (N * K / 2))))
        own = [random_weight(1, N, K, 128, i) for i in range(copies)]
        held["ours"] = [prepare_weight(w, fold=True) for w in own]
        held["own"] = [replace(w, packed=w.packed[0], scale=w.scale[0]) for w in own]
        held["dense"] = [
            w.dequantize().to(torch.bfloat16) for w in held["own"][: max(1, min(4, round(2e8 / (N * K * 2))))]
        ]
    count = 8 if T < 2048 else 4
    x = torch.randn(T, K, device="cuda", generator=torch.Generator("cuda").manual_seed(T)).bfloat16()
    of = lambda name, i: held[name][i % len(held[name])]
    sides = {
        "ours": [partial(int4_linear_hopper, x, of("ours", i)) for i in range(count)],
        "marlin": [partial(vllm_prepared.marlin_linear, x, of("own", i), None) for i in range(count)],
        "machete": [partial(vllm_prepared.machete_linear, x, of("own", i), None) for i in range(count)],
        "cublas": [partial(torch.nn.functional.linear, x, of("dense", i)) for i in range(count)],
    }
    w = held["own"][0]
    verdicts = {}
    for name, rules in (("ours", "grouped"), ("marlin", CLIENTS["vllm.marlin_gemm"].contract), ("machete", "grouped")):
        try:
            some = sides[name][0]()[:4]
            verdicts[name] = judged("int4_linear", some, x[:4], w, contract=rules)
        except Exception as error:
            verdicts[name] = f"raised {str(error)[:120]}"
            del sides[name]
    times = timed(sides, 0.1)
    nbytes, flops = N * K * (0.5 + 2 / 128), 2 * T * N * K
    floor = run.floor(nbytes, flops)
    row = {"N": N, "K": K, "T": T, "floor_us": round(floor, 2)} | beside(
        times, "ours", [n for n in sides if n != "ours"]
    )
    tile = linear_tile(T, N, K)
    return row | {
        "x_floor": round(row["us"] / floor, 3),
        "verdicts": verdicts,
        "tile": f"{type(tile).__name__} {tuple(vars(tile).values())}",
    }


def main(path: str) -> None:
    missing = load_libraries("vllm", (STABLE, STABLE_MOE))
    if missing:
        sys.exit(f"rows.py: {missing}")
    pool = multiprocessing.get_context("spawn").Pool(max(1, min(14, (os.cpu_count() or 2) - 1)))
    todo = list(jobs())
    results, done = pool.imap(compiled, todo), set()
    run = Run(path)

    def ready(job: Any) -> None:
        while job not in done:
            found, spills = next(results)
            done.add(found)
            if spills:
                run.spills[str(found)] = spills

    which = sys.argv[2:] or ["layers", "linears"]
    if "layers" in which:
        for name, shape in (SHAPES | MODELS).items():
            try:
                layer_rows(run, name, shape, ready)
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            torch.cuda.empty_cache()
    if "linears" in which:
        for N, K in LINEARS:
            held: dict[str, Any] = {}
            for T in ROWS:
                if time.time() - START > LIMIT:
                    break
                ready((2, N, K, 128, 1, linear_tile(T, N, K)))
                try:
                    run.keep("linears", linear_row(run, N, K, T, held))
                except Exception as error:
                    print(f"{N}x{K} T={T}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            held.clear()
            torch.cuda.empty_cache()
    print("untuned:", tuned.untuned(), flush=True)
    pool.terminate()


if __name__ == "__main__":
    main(sys.argv[1])
