"""The stages that a bisection can name, for a layer, for one GEMM, and for kernels that are one stage themselves."""

from __future__ import annotations

UNPACK, SCALE, ZERO, ROUTING = "unpack", "scale", "zero point", "routing"
GEMM1, ACTIVATION, GEMM2, REDUCTION = "gemm1", "activation", "gemm2", "reduction"
BIAS, QUANTIZER = "bias", "quantizer"
STAGES = (UNPACK, SCALE, ZERO, ROUTING, GEMM1, ACTIVATION, GEMM2, REDUCTION)
INPUTS = "inputs"  # written over: no stage computes a wrong value
OTHER_STAGES = (BIAS, QUANTIZER, INPUTS)
# What is convicted where every probe is answered rightly: the stage that stored the wrong elements.
FALLBACK = {"h": GEMM1, "a": ACTIVATION, "y": GEMM2, "out": REDUCTION}
