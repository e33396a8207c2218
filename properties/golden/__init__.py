"""Golden data: inputs and correctly rounded results, the same bytes on every machine, and kernels' own recorded bits.

rational, transcendental   exact sums, and exp, silu and softmax correctly rounded: no library's last bit enters
derive                     what is stored where every sum is exact and every rounding of the contract correct
literals, catalogue        cases worked by hand, and everything else that the shipped set holds
tensors, store             bytes on disk, the manifest, what is refused
verify, replay, regen      drift of inputs, reference, oracle and kernels; new bits, and whether their change is legal
"""
