"""Record what clients' kernels return on small cases: python -m moeracle.clients.record FOLDER [TARGET …]

Each file is what `assert_legal` would save, so that `moeracle judge FILE` judges it where the client is not installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from moeracle.properties.cases.case import Case
from moeracle.target.load import load_target
from moeracle.tensors.judge import judge_tensors

TARGETS = ("vllm", "sglang", "executorch", "transformers", "vllm_gemms")
CASES = (
    "padded_gemm/T5-E4-k2-N48-K64-G32-B16/bf16/nibble_pairs-sym/zipf1/normal/s1",
    "padded_gemm/T5-E4-k2-N48-K64-G32-B16/fp16/nibble_pairs-asym/ignored+weight/normal/s2",
    "moe_w4a16/T5-E4-k2-H64-I32-G32/bf16/nibble_pairs-sym/zipf1/normal/s3",
    "moe_w4a16/T4-E4-k3-H64-I32-G32/fp16/nibble_pairs-sym/uniform/normal/s4",
    "topk_softmax/T9-E16-k4/fp32/-/-+renorm/normal/s5",
    "grouped_topk/T9-E16-k4-g4-m2/fp32/-/-+bias+renorm+scaled+sigmoid/normal/s6",
    "int4_linear/T9-N64-K256-G32/fp16/awq-asym/-/normal/s7",
    "int4_linear/T9-N64-K256-G32/fp16/gptq-v1/-/normal/s8",
    "int4_linear/T9-N64-K256-G32/fp16/gptq-v2/-/normal/s9",
    "int4_linear/T17-N64-K128-G-1/bf16/gptq-sym/-/normal+bias/s10",
    "int4_linear/T5-N64-K128-G32/bf16/gptq-sym/-/normal+bias/s12",
    "padded_gemm/T5-E4-k2-N64-K128-G32-B16/bf16/gptq-sym/zipf1+weight/normal/s13",
    "padded_gemm/T5-E4-k2-N64-K128-G-1-B16/fp16/gptq-sym/zipf1+weight/normal/s14",
    "moe_w4a16/T5-E4-k2-H128-I64-G32/bf16/gptq-sym/zipf1/normal/s15",
    "moe_w4a16/T4-E4-k3-H128-I64-G-1/fp16/gptq-sym/uniform/normal/s16",
)


def main(folder: str, *targets: str) -> int:
    """Write one file a kernel and case; return 1 if one is not legal, and 3 if none could be run."""
    place, legal, wrong = Path(folder), 0, 0
    for target in targets or TARGETS:
        for kernel in load_target(f"moeracle.clients.{target}").kernels:
            for number, text in enumerate(CASES):
                case = Case.parse(text)
                if case.op != kernel.op:
                    continue
                reason = kernel.why_not(case)
                if reason is not None:
                    print(f"{kernel.name}: skipped {text}: {reason}")
                    continue
                problem = case.build(kernel.device)
                output = kernel.fn(*problem.args.values())
                verdict = judge_tensors(
                    case.op, output, *problem.args.values(), contract=kernel.contract, name=kernel.name, explain=False
                )
                legal, wrong = legal + verdict.ok, wrong + (not verdict.ok)
                verdict.save(place / f"{kernel.name}.{number}.safetensors")
                print(f"{kernel.name}: {verdict.status} {text}")
    return 1 if wrong else 0 if legal else 3


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
