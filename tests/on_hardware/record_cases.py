"""What record.py records: lists of jobs, the most valuable first; a worker takes every n-th of them."""

import itertools

DATA = ("normal", "outliers", "subnormal", "cancelling", "wide")


def gemms():
    """The portable GEMMs with every kind of tile, and raw instructions."""
    cases = []
    tiles = [(bm, 64, bk, 4, 2) for bm, bk in itertools.product((16, 64, 128), (32, 64, 128))]
    tiles += [(16, 128, 64, 4, 4), (64, 128, 64, 4, 3), (128, 128, 64, 8, 3)]  # the defaults
    for dt, (i, t) in itertools.product(("bf16", "fp16"), enumerate(tiles)):
        default = t[1] == 128
        G, head = 128 if default else 32, "grouped_gemm/T8-E2-k2-N64"
        at = lambda K, d, G=G, dt=dt, i=i, head=head: f"{head}-K{K}-G{G}/{dt}/exllama-sym/uniform/{d}/s{i}"
        some, big = [at(512, d) for d in DATA], [at(2048, d) for d in ("normal", "cancelling")]
        if default:
            big += [at(8192, d) for d in ("normal", "outliers")]
        cases.append(("case", "grouped_gemm", "fp32", t, some + big))
        if default:
            cases.append(("case", "grouped_gemm", dt, t, some + big))
            wanted = ((512, "outliers"), (2048, "wide"), (512, "subnormal"), (8192, "cancelling"))
            pad = [f"padded_gemm/T8-E2-k2-N64-K{K}-G128-B16/{dt}/exllama-sym/uniform/{d}/s{i}" for K, d in wanted]
            cases.append(("case", "padded_gemm", "fp32", t, pad))
            cases.append(("case", "padded_gemm", dt, t, [p.replace("/uniform/", "/uniform+weight/") for p in pad[:2]]))
            wanted = ((512, "normal"), (2048, "outliers"), (512, "subnormal"), (8192, "wide"))
            lin = [f"int4_linear/T16-N64-K{K}-G128/{dt}/exllama-rdna/-/{d}+bias/s{i}" for K, d in wanted]
            lin += [f"int4_linear/T16-N64-K1000-G8/{dt}/exllama-sym/-/cancelling+bias/s{i}"]
            cases.append(("case", "int4_linear", "fp32", t, lin))
            cases.append(("case", "int4_linear", dt, t, lin[:3]))
    for dt, g in itertools.product(("bf16", "fp16"), (32, 128, 256, 512)):
        at = lambda K, d, g=g, dt=dt: f"padded_gemm/T4-E2-k2-N64-K{K}-G{g}-B16/{dt}/exllama-sym/uniform/{d}/s{g}"
        dec = [*(at(K, d) for d in DATA for K in (512, 2048)), at(8192, "normal")]
        cases.append(("case", "decode_gemm", "fp32", None, dec))
        if g >= 128:
            cases.append(("case", "decode_gemm", dt, None, dec[:4]))
    dots = [("dots", shape, dt) for shape in ("m16n8k8", "m16n8k16") for dt in ("bf16", "fp16")]
    dots += [("dots", f"dot{bm}{codes}", dt) for bm in (16, 64) for codes in ("", "codes") for dt in ("bf16", "fp16")]
    return dots + cases


def hopper():
    """The Hopper GEMMs with every tile of the tables that this GPU asks and some others, and every tuned layer."""
    from tuned_tiles import tuned_layers

    from moeracle.kernels.hopper.tiles.layers import KINDS, Direct, Duo, Few, Layer, Ring, Stream

    layers = tuned_layers()
    tiles = [tile for layer in layers for tile in (layer.gemm1, layer.gemm2)]
    defaults = [  # what untuned shapes took before there was a model
        Layer(Few(8, 64, 4, 4), Few(8, 64, 2, 4)), Layer(Few(8, 64, 1, 4), Few(8, 64, 1, 4)),
        Layer(Direct(16, 128, 256, 3, 8, 8), Few(16, 64, 1, 4)),
        Layer(Direct(32, 128, 256, 2, 8, 16), Direct(32, 128, 256, 2, 8, 16)),
        Layer(Duo(64, 256, 128, 4, 32), Stream(64, 128, 4, 2)),
    ]  # fmt: skip
    tiles += [tile for layer in defaults for tile in (layer.gemm1, layer.gemm2)]
    tiles += [Few(8, 64, 4, 4), Few(16, 64, 1, 4), Ring(32, 128, 64, 5, 4), Ring(64, 128, 64, 5, 4)]
    tiles += [kind() for kind in KINDS.values()]
    jobs = []
    for i, tile in enumerate(dict.fromkeys(tiles)):
        B, N, K, long = tile.block_m, tile.block_n, kept(tile, 256), kept(tile, 1536)
        pad = lambda K, G, d, form, dt, flags="", T=6, N=N, B=B, i=i: (
            f"padded_gemm/T{T}-E2-k2-N{N}-K{K}-G{G}-B{B}/{dt}/exllama-{form}/uniform{flags}/{d}/s{i}"
        )
        texts = [
            pad(K, 128, "normal", "sym", "bf16"), pad(long, 128, "cancelling", "sym", "bf16"),
            pad(K, 32, "wide", "rdna", "fp16"), pad(K, 128, "outliers", "unpacked", "fp16", "+weight"),
            pad(K, 32, "subnormal", "rdna", "bf16"), pad(K, -1, "cancelling", "sym", "fp16"),
            pad(K, 128, "wide", "sym", "bf16", "", B),
        ]  # fmt: skip
        texts += [f"grouped_gemm/T5-E3-k2-N{N}-K{K}-G128/bf16/exllama-sym/zipf1/wide/s{i}"]
        if N == 64 or i % 4 == 0:
            texts += [pad(kept(tile, 8192), 128, "normal", "sym", "bf16")] if B * 8192 * 2 < 200000 else []
        jobs.append(("hopper", tile, texts))
    for i, tiles in enumerate(dict.fromkeys([*layers, defaults[0]])):
        # h feeds silu in halves, so 2I is a multiple of GEMM1's block_n, and H one of GEMM2's
        H = kept(tiles.gemm1, max(256, tiles.gemm2.block_n), 2 * tiles.gemm2.block_n)
        I = kept(tiles.gemm2, max(256, tiles.gemm1.block_n), tiles.gemm1.block_n)
        dims = f"T{3 + 2 * (i % 3)}-E4-k2-H{H}-I{I}"
        jobs.append(
            ("layer", tiles, [
                f"moe_w4a16/{dims}-G128/{'bf16' if i % 2 else 'fp16'}/exllama-sym/uniform/normal/s{i}",
                f"moe_w4a16/{dims}-G32/{'fp16' if i % 2 else 'bf16'}/exllama-rdna/ignored/cancelling/s{i}",
            ])
        )  # fmt: skip
    for dt in ("bf16", "fp16"):
        jobs += [("entry", name, dt, [
            f"{op}/T4-E3-k2-N128-K{K}-G{G}{B}/{dt}/exllama-{form}/uniform/{d}/s{K}"
            for K, G, form, d in ((96, 32, "sym", "normal"), (768, 128, "rdna", "cancelling"), (2048, -1, "sym", "wide"))
        ]) for op, name, B in (
            ("grouped_gemm", "grouped_gemm.hopper", ""), ("padded_gemm", "padded_gemm.hopper", "-B16"),
            ("padded_gemm", "padded_gemm.hopper_split", "-B8"),
        )]  # fmt: skip
        jobs.append(("entry", "moe_w4a16.hopper", dt, [
            f"moe_w4a16/T{T}-E4-k2-H256-I512-G128/{dt}/exllama-sym/uniform/{d}/s{T}"
            for T, d in ((1, "normal"), (24, "wide"), (100, "normal"))
        ]))  # fmt: skip
    return jobs


def kept(tile, least, multiple=128):
    """Return the smallest K from `least` on that leaves a tile as it is."""
    from moeracle.kernels.hopper.cases import sizes_of

    for K in range(-(-least // multiple) * multiple, 16384, multiple):
        if K % 128 == 0 and tile.fit(sizes_of(4 * tile.block_n, K, 128)) == tile:
            return K
    raise ValueError(f"{tile}: no K keeps it")
