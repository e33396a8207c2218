"""A layer over ranks is judged as a whole: legal forms, every planted fault located by its rank, and every ending."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import support
from moeracle.isolate.client import Limits
from moeracle.isolate.load import load_isolated
from moeracle.kernels.ranks import moe_w4a16 as ours
from moeracle.properties.cases.case import Case
from moeracle.properties.trial.trial import run_trial
from moeracle.target.declaration import make_kernel
from moeracle.target.load import Kernel

PLANTED = Path(support.__file__).with_name("ranks.py")
EXAMPLE = Path(__file__).parents[2] / "examples" / "ranks.py"
CASE = Case.parse("moe_w4a16/T6-E6-k3-H32-I32-G32/bf16/exllama-sym/uniform/normal/s1")
EXACT = Case.parse("moe_w4a16/T7-E5-k2-H64-I64-G32/fp16/awq-asym/zipf1/integers/s2")
SECONDS = 4.0  # for ranks that never end


@pytest.fixture(scope="module")
def planted() -> Iterator[dict[str, Kernel]]:
    kernels = {k.name: k for k in load_isolated(str(PLANTED)).kernels}
    yield kernels
    for kernel in kernels.values():
        kernel.fn.close()  # type: ignore[attr-defined]


def test_every_form_is_legal_over_two_and_four_ranks() -> None:
    kernels = load_isolated("moeracle.ranks").kernels
    assert [k.name for k in kernels] == [
        f"{form}_{n}" for form in ("all_reduce", "all_to_all", "gather_scatter") for n in (2, 4)
    ]
    for kernel in kernels:
        verdicts = [run_trial(kernel, case) for case in (CASE, EXACT)]
        kernel.fn.close()  # type: ignore[attr-defined]
        assert [v.status for v in verdicts] == ["legal", "legal"], [v.text() for v in verdicts]
        of_ranks = kernel.contract.ranks
        assert of_ranks is not None
        assert ("partial" in verdicts[0].bits) == of_ranks.partial
        known = of_ranks.count == 2 or not of_ranks.partial or of_ranks.join == "sequential"
        exact = verdicts[1].stages[-1]
        assert not known or exact.exact == exact.judged  # on exact data, and in a known order, one value is legal


@pytest.mark.parametrize("name", ["all_to_all_shared", "gather_scatter_shared", "all_reduce_shared"])
def test_an_expert_on_every_rank_is_counted_once(planted: dict[str, Kernel], name: str) -> None:
    verdict = run_trial(planted[name], CASE)
    planted[name].fn.close()  # type: ignore[attr-defined]
    assert verdict.ok, verdict.text()


def test_the_example_is_legal() -> None:
    (kernel,) = load_isolated(str(EXAMPLE)).kernels
    verdict = run_trial(kernel, CASE)
    kernel.fn.close()  # type: ignore[attr-defined]
    assert verdict.ok, verdict.text()
    assert list(verdict.bits) == ["partial", "out"]


FAULTS = {
    "wrong_map": (
        "partial",
        ["rank 1: illegal partial sums; rank 0: legal", "F250 one rank reads the next", "(rank 1)"],
    ),
    "not_reduced": ("out", ["rank 1 returned illegal bits; rank 0 returned legal ones"]),
    "missing": ("out", ["F253 one rank's partial sum missing from the sum over ranks (rank 1)"]),
    "stale": ("partial", ["rank 1 handed on the partial sum of the call before: it is stale", "only rank 1 gave"]),
    "shared_by_all": ("partial", ["rank 1: illegal partial sums", "F252 an expert that lies on every rank counted by"]),
    "other_order": ("out", ["ranks 0-1: illegal tokens", "F251 results of ranks returned in another order"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_one_rank_is_seen_and_located(planted: dict[str, Kernel], name: str) -> None:
    stage, said = FAULTS[name]
    verdict = run_trial(planted[name], CASE, explain=any(words.startswith("F2") for words in said))
    planted[name].fn.close()  # type: ignore[attr-defined]
    assert (verdict.status, verdict.stage) == ("illegal", stage), verdict.text()
    for words in said:
        assert words in verdict.text()


ENDINGS = {
    "dies": ("crash", "rank 1: its process was killed by SIGKILL"),
    "crashes": ("crash", "rank 1: its process was killed by SIGSEGV"),
    "ends": ("exit", "rank 1: ended its process with exit code 7"),
    "raises": ("call", "rank 1: raised ValueError: no such thing (ranks.py:"),
    "hangs": ("timeout", "rank 1: the call on"),
    "leaves": ("timeout", "rank 1 returned, while rank 0 waited in a collective"),
    "writes": ("inputs", "rank 1 wrote into its input x; inputs must be unchanged"),
    "goes_elsewhere": (
        "call",
        "ranks disagree about which collective comes next: rank 0 in allreduce of [5], rank 1 in barrier",
    ),
    "reduces_more": (
        "shape",
        "ranks disagree about the shape of what they reduce or exchange: rank 0 in allreduce of [5], rank 1",
    ),
    "returns_less": ("shape", "rank 1: out: got shape [5, 32], must be [6, 32]; right of rank 0"),
    "returns_another_dtype": ("shape", "ranks disagree: rank 0 returned out (bfloat16), rank 1 out (float32)"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_an_ending_names_the_rank_and_leaves_no_process(
    planted: dict[str, Kernel], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier, said = ENDINGS[name]
    fn: Any = planted[name].fn
    if tier == "timeout":
        monkeypatch.setattr(fn.loader, "limits", Limits(SECONDS))
    fn._gathered()
    pids = [member.child.pid for member in fn.members]
    verdict = run_trial(planted[name], CASE)
    fn.close()
    assert (verdict.status, verdict.tier) == ("illegal", tier), verdict.text()
    first = verdict.summary[0].replace(f"{PLANTED.parent}/", "")
    assert first.startswith(said), first
    assert "\n" not in first
    if name == "hangs":
        assert "while rank 0 waited for it in a collective" in first
        assert any(line.startswith("rank 1 stands at") and "ranks.py" in line for line in verdict.summary)
    assert len(pids) == 2
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


LOADS_ONCE = """
import os
from pathlib import Path
import moeracle
times = Path(__file__).with_suffix(".times")
with times.open("a") as file:
    file.write("!")
if len(times.read_text()) > 1:
    os._exit(3)

@moeracle.kernel("moe_w4a16", world_size=2)
def layer(x, w13, w2, topk_weights, topk_ids, expert_map):
    return x
"""


def test_a_rank_that_cannot_load_the_target_is_named_and_not_tried_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "once.py"
    file.write_text(LOADS_ONCE)
    (kernel,) = load_isolated(str(file)).kernels
    said = [run_trial(kernel, CASE).summary[0] for _ in range(4)]
    kernel.fn.close()  # type: ignore[attr-defined]
    assert said[0] == "rank 1: its import ended its process with exit code 3"
    assert said[-1].startswith("given up, its process having ended 2 times")


def layer(x: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any, expert_map: Any) -> None: ...


def without_map(x: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> None: ...


def test_a_declaration_that_cannot_run_over_ranks_is_one_line() -> None:
    assert make_kernel(layer, "moe_w4a16", world_size=4).contract.name == "grouped,ranks=4/dtype/add=dtype"
    two = "grouped,ranks=2/rows"
    for fn, op, declared, said in (
        (layer, "moe_w4a16", {"world_size": 0}, "world_size: got 0, must be the number of ranks, 1 to 256"),
        (layer, "moe_w4a16", {"world_size": True}, "world_size: got True"),
        (
            layer,
            "moe_w4a16",
            {"world_size": 2, "contract": "grouped"},
            "ranks: got contract 'grouped' with world_size=2",
        ),
        (layer, "moe_w4a16", {"world_size": 4, "contract": two}, "must say where ranks round: ranks=4/dtype/add=dtype"),
        (without_map, "moe_w4a16", {"world_size": 2}, "expert_map: got none with world_size=2"),
        (layer, "moe_w4a16", {"world_size": 2, "device": "cuda:1"}, "device: got 'cuda:1' with world_size=2"),
        (lambda h: h, "silu_and_mul", {"world_size": 2}, "ranks: got 2/dtype/add=dtype for op 'silu_and_mul'"),
    ):
        with pytest.raises(ValueError, match="got") as error:
            make_kernel(fn, op, **declared)  # type: ignore[arg-type]
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_what_cannot_start_ranks_says_so(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, said in (
        (
            ["check", "moeracle.ranks", "--in-process"],
            "runs over 2 ranks, each a process; here kernels run in this one",
        ),
        (["soak", str(EXAMPLE), "--seconds", "1"], "kernel my_layer runs over 2 ranks, each a process; this command"),
        (
            ["infer", str(EXAMPLE)],
            "kernel my_layer runs over 2 ranks, each a process; this command takes kernels of one",
        ),
        (["check", str(EXAMPLE), "--adversarial"], "my_layer runs over 2 ranks, whose processes --adversarial keeps"),
    ):
        done = cli(*words)
        assert (done.code, len(done.err.strip().splitlines())) == (2, 1), done.err
        assert said in done.err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    done = cli("check", str(EXAMPLE), "--case", str(CASE))
    assert (done.code, done.out, done.err) == (0, "", "")  # torchrun's rank 0 judges
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    done = cli("check", str(EXAMPLE))
    assert done.code == 2
    assert "torchrun: got 2 processes, 1 of them here, must run on one machine" in done.err


def test_a_case_of_one_rank_is_not_asked_of_several() -> None:
    kernel = make_kernel(ours.all_reduce, "moe_w4a16", world_size=4)
    assert (
        kernel.why_not(CASE.replace(flags=frozenset({"ep2"})))
        == "it runs over 4 ranks, and ep2 is one rank's part alone"
    )
    few = CASE.replace(E=3)
    assert kernel.why_not(few) == "it runs over 4 ranks, of which 3 experts leave some without any"
