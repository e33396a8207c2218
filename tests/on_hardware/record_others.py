"""What record.py records of registered kernels whose order the compiler chooses or a case decides, and of layers."""

import itertools

TREES = (("normal", 512), ("cancelling", 512), ("wide", 1000), ("subnormal", 512), ("outliers", 2048))
FORMS = ("sym", "rdna", "unpacked")


def rows():
    """int4_linear of few rows and of many, tiny_dot, and the sums over slots."""
    jobs = []
    for dt in ("bf16", "fp16"):
        for form, G in itertools.product(FORMS, (8, 32, 128, 256, -1)):
            texts = [
                f"int4_linear/T2-N24-K{K}-G{G}/{dt}/exllama-{form}/-/{d}{'+bias' if i % 2 else ''}/s{i}"
                for i, (d, K) in enumerate(TREES)
                if G == -1 or K % G == 0
            ]
            if form != "rdna":
                texts.append(f"int4_linear/T1-N16-K2048-G{G}/{dt}/exllama-{form}/-/normal+strided/s7")
            if G in (128, -1):
                texts.append(f"int4_linear/T1-N16-K8192-G{G}/{dt}/exllama-{form}/-/normal/s8")
            jobs.append(("entry", "int4_linear.rows", "fp32", texts))
            jobs.append(("entry", "int4_linear", dt, texts[:2]))
        for form, T in itertools.product(FORMS, (5, 20, 80)):
            texts = [f"int4_linear/T{T}-N48-K512-G128/{dt}/exllama-{form}/-/{d}+bias/s{T}" for d in ("normal", "wide")]
            jobs += [("entry", "int4_linear", store, texts) for store in ("fp32", dt)]
        sizes = (
            (5, 2048, 256),
            (5, 64, 1024),
            (1, 64, 2048),
            (9, 192, 96),
            (20, 64, 1024),
            (40, 128, 512),
            (80, 192, 96),
            (80, 64, 2048),
        )
        for i, (T, N, K) in enumerate((*sizes, (80, 128, 512), (1, 8192, 128))):
            texts = [
                f"int4_linear/T{T}-N{N}-K{K}-G{32 if K % 128 else 128}/{dt}/exllama-{form}/-/{d}+bias/s{i}"
                for form, d in zip(FORMS, ("cancelling", "wide", "normal"), strict=True)
            ]
            jobs.append(("entry", "int4_linear.hopper", dt, texts))
        texts = [f"tiny_dot/T{T}-K{K}/{dt}/-/-/{d}/s{T}" for T in (3, 300) for d, K in (*TREES, ("normal", 96))]
        texts += [f"tiny_dot/T1-K8192/{dt}/-/-/wide/s1", f"tiny_dot/T7-K2048/{dt}/-/-/cancelling+strided/s2"]
        jobs += [("entry", "tiny_dot", "fp32", texts), ("entry", "tiny_dot", dt, texts[::3])]
        texts = [
            f"moe_unpermute/T{T}-E8-k{k}-K96/{dt}/-/uniform/{d}/s{k}"
            for (T, k) in ((9, 2), (5, 3), (4, 8), (3, 1)) for d in ("normal", "wide", "cancelling", "subnormal")
        ]  # fmt: skip
        jobs += [("entry", "moe_unpermute", store, texts) for store in ("fp32", dt)]
        jobs += [("sum", store, texts) for store in ("fp32", dt)]
    return jobs


def lm_heads():
    """int8_lm_head: one token, few tokens at every number of groups a product, many tokens, odd groups."""
    jobs = []
    for dt in ("bf16", "fp16"):
        at = lambda T, K, G, d, bias="", dt=dt, seed=0: (
            f"int8_lm_head/T{T}-V72-K{K}-G{G}/{dt}/-/-/{d}{bias}/s{seed or T}"
        )
        for G in (-1, 16, 32, 64, 128, 256, 24):
            whole = 768 if G != 24 else 720
            for kind, name in (("entry", "int8_lm_head.rows"), ("lm_head", "int8_lm_head")):
                texts = [at(1, whole, G, d, bias) for d, bias in (("normal", "+bias"), ("cancelling", ""))]
                texts += [at(2 if G == 24 else 1, whole, G, "wide", "+bias"), at(1, whole, G, "subnormal", seed=3)]
                texts.append(at(1, 8192 if G == 128 else 2304, G, "normal"))
                jobs.append((kind, name, "fp32", texts))
            jobs.append(("lm_head", "int8_lm_head", dt, texts[:2]))
            if G in (-1, 32, 64, 128):
                here = [
                    at(1, 2048, G, "normal", "+bias"),
                    at(3, 768, G, "cancelling"),
                    at(2, 512, G, "subnormal", seed=3),
                ]
                here += [at(T, 768, G, "cancelling", seed=T) for T in (1, 8, 33)]
                here += [at(20, 1024, G, "wide", "+bias"), at(70, 512, G, "outliers"), at(4, 8192, G, "normal")]
                jobs.append(("lm_head", "int8_lm_head.hopper", dt, here))
            if G == 24:
                continue
            for T in (2, 3, 8, 16, 17, 65):
                few = [at(T, 768, G, "normal", "+bias"), at(T, 512, G, "cancelling"), at(T, 1792, G, "wide")]
                few += (
                    [at(T, 512, G, "subnormal", "+bias"), at(T, 512, G, "outliers", "+strided")] if T in (3, 17) else []
                )
                few += [at(T, 8192, G, "normal")] if G == 32 and T == 3 else []
                jobs.append(("lm_head", "int8_lm_head", "fp32", few))
            jobs.append(("lm_head", "int8_lm_head", dt, [at(3, 768, G, "cancelling", "+bias"), at(33, 768, G, "wide")]))
    return jobs


def layers():
    """The portable layers and the shared expert: every stage that they store."""
    jobs = []
    for dt, form in itertools.product(("bf16", "fp16"), FORMS):
        for name, sizes in (
            # rows an expert decide: 16, 64 or 128 rows a tile
            ("grouped", ((4, 2, 256, 128), (30, 1, 256, 128), (100, 1, 128, 64))),
            ("padded", ((4, 2, 256, 128), (30, 1, 256, 128), (100, 1, 128, 64))),
            ("fused", ((4, 2, 256, 128), (30, 1, 256, 128), (100, 1, 128, 64))),
            ("decode", ((1, 2, 512, 256), (3, 2, 256, 512), (9, 2, 256, 128))),
        ):
            texts = [
                f"moe_w4a16/T{T}-E{k}-k{k}-H{H}-I{I}-G{G}/{dt}/exllama-{form}/uniform/{d}/s{T}"
                for (T, k, H, I), (G, d) in zip(
                    sizes, ((128, "normal"), (32, "cancelling"), (-1, "outliers")), strict=True
                )
            ]
            if name == "decode":
                texts.append(f"moe_w4a16/T2-E4-k2-H256-I128-G64/{dt}/exllama-{form}/ignored/wide/s2")
            jobs.append(("entry", f"moe_w4a16.{name}", dt, texts))
        for G in (128, 32, -1):
            texts = [
                f"shared_expert/T{T}-H{H}-I{I}-G{G}/{dt}/exllama-{form}/-/{d}/s{T}"
                for T, H, I, d in (
                    (1, 512, 256, "normal+gate"), (3, 256, 512, "cancelling"), (4, 1024, 128, "wide+gate"),
                    (9, 256, 128, "normal+gate"), (70, 128, 128, "cancelling+gate"),
                )
            ]  # fmt: skip
            jobs += [("entry", name, dt, texts) for name in ("shared_expert", "shared_expert.hopper")]
    return jobs


def kernels():
    """All of them."""
    return lm_heads() + rows() + layers()
