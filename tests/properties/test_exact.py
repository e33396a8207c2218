"""Exact data: every partial sum of every order, with the zero hoisted or not, counted in int64 units."""

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.exact import Window, plan_gemm, plan_moe

HALF = ("bf16", "fp16")


def problem_dtype(dtype: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


@pytest.mark.parametrize("data", ["integers", "samesign"])
@pytest.mark.parametrize("zero", ["sym", "unpacked"])
@pytest.mark.parametrize("K", [8, 96, 512, 2048])
def test_every_partial_sum_of_one_gemm_is_below_2_24_units(data: str, zero: str, K: int) -> None:
    """Also with the zero hoisted out of the whole row: sums of a(128+u) and of a(128+z), and the bias."""
    for seed in range(6):
        for dtype in HALF:
            case = Case.of(
                "int4_linear", T=4, N=16, K=K, G=8, data=data, zero=zero, seed=seed, dtype=dtype, flags=["bias"]
            )
            problem = case.build()
            assert problem.exact
            x, w, bias = (problem.args[name] for name in ("x", "w", "bias"))
            unit = float(w.scale.double().min())
            steps = (w.scale.double() / unit).long().repeat_interleave(8, 1)
            assert set(steps.flatten().tolist()) == {1, 2}
            a, u = x.long().abs(), w.codes().long()
            z = 8 if zero == "sym" else w.zeros().long().repeat_interleave(8, 1)
            assert torch.equal(a.double(), x.double().abs())
            units = (bias.double() / unit).long()
            assert torch.equal(units.double() * unit, bias.double())
            assert (a @ ((256 + u + z) * steps).T + units.abs()).max() < 1 << 24
            y = x.double() @ w.dequantize(torch.float64).T + bias.double()
            assert 0 < y.abs().max() <= 32768
            if data == "samesign":
                assert x.min() >= 0
                assert (u >= z).all()
            assert a.count_nonzero(1).max() <= (-(-K // 8) if seed % 2 else K)


@pytest.mark.parametrize("data", ["integers", "samesign"])
def test_every_partial_sum_of_the_lm_head_is_below_2_24_units(data: str) -> None:
    for seed, K in enumerate((16, 512, 2048, 48)):
        args = Case.of("int8_lm_head", T=4, V=32, K=K, G=16, data=data, seed=seed, flags=["bias"]).build().args
        unit = float(args["scale"].min())
        steps = (args["scale"] / unit).long().repeat_interleave(16, 1)
        raw = (args["codes"].long().abs() + 255) * steps
        assert (args["x"].long().abs() @ raw.T + (args["bias"].double() / unit).abs()).max() < 1 << 24
        assert args["codes"].min() >= (0 if data == "samesign" else -128)


SHAPES = [(64, 32, 8, 2), (256, 128, 32, 4), (2048, 768, 32, 8), (2048, 768, -1, 8), (1024, 512, 128, 8), (8, 8, -1, 1)]


@pytest.mark.parametrize("data", ["integers", "samesign"])
@pytest.mark.parametrize("zero", ["sym", "unpacked"])
@pytest.mark.parametrize(("H", "I", "G", "k"), SHAPES)
def test_every_partial_sum_of_a_layer_is_below_2_24_units(data: str, zero: str, H: int, I: int, G: int, k: int) -> None:
    for seed, dtype in ((0, "bf16"), (1, "fp16")):
        D = problem_dtype(dtype)
        case = Case.of(
            "moe_w4a16", T=3, E=2, k=k, H=H, I=I, G=G, data=data, zero=zero, seed=seed, dtype=dtype, routing="repeat"
        )
        problem = case.build()
        assert problem.exact
        x, w13, w2, weights, ids = problem.args.values()
        first, second = w13.dequantize(torch.float64), w2.dequantize(torch.float64)
        unit, down = 128 * float(w13.scale.double()[:, I:].min()), float(w2.scale.double().min())
        steps = (w2.scale.double() / down).repeat_interleave(w2.G, 2)
        z = 8 if zero == "sym" else w2.zeros().double().repeat_interleave(w2.G, 2)
        raw = (256 + w2.codes().double() + z) * steps
        for t in range(3):
            sums = torch.zeros(H, dtype=torch.float64)
            for j, e in enumerate(ids[t].tolist()):
                h = first[e] @ x[t].double()
                assert torch.equal(h.to(D).double(), h)  # h is stored without rounding
                gate, up = h[:I], h[I:]
                assert (gate % 128 == 0).all()
                a = (gate.clamp(min=0) * up).to(D).double()
                assert a.isfinite().all()
                assert (a % unit == 0).all()
                assert (raw[e] @ (a.abs() / unit)).max() < 1 << 24
                y = (second[e] @ a).to(D).double()
                sums += y.abs() * weights[t, j].double()
                assert (y * weights[t, j].double() % (unit * down / 8) == 0).all()
            assert sums.max() / (unit * down / 8) < 1 << 24
            assert sums.max() <= 65504
        assert x.count_nonzero(1).min() >= 1


def test_what_cannot_be_bounded_is_not_promised() -> None:
    assert plan_gemm("integers", 8192, 0).exact
    assert not plan_gemm("integers", 1 << 20, 0).exact
    assert plan_moe("integers", 2048, 768, 8, True).exact
    assert not plan_moe("integers", 4096, 65536, 8, True).exact


def test_small_layers_use_more_than_one_nonzero() -> None:
    assert plan_moe("integers", 64, 32, 2, True).nonzeros >= 4
    assert plan_moe("samesign", 128, 128, 2, True).nonzeros >= 2


def test_reach_of_code_windows_by_hand() -> None:
    assert Window().reach(symmetric=True) == 8
    assert Window().reach(symmetric=False) == 15
    assert Window(4, 3, 6, 9).reach(symmetric=True) == 4
    assert Window(4, 3, 6, 9).reach(symmetric=False) == 5
    assert Window(8, 2, 5, 8).reach(symmetric=False) == 6
