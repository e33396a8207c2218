"""Quantized weights: layouts, unpacking, dequantizing, quantizing."""
