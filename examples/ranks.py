"""An expert-parallel layer over two ranks: moeracle check examples/ranks.py"""

import torch
import torch.distributed as dist
import torch.nn.functional as F

import moeracle


@moeracle.kernel("moe_w4a16", world_size=2, contract="grouped,accumulator=fp32,ranks=2/dtype/add=dtype")
def my_layer(x, w13, w2, topk_weights, topk_ids, expert_map):
    """Called on each rank: with all tokens, its own experts' weights, and each expert's local number (-1: not here).

    torch.distributed's default group is there already: gloo on the CPU, NCCL on GPUs.
    """
    partial = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    local = torch.where(topk_ids < 0, -1, expert_map[topk_ids.clamp(min=0).long()])
    for slot in range(topk_ids.shape[1]):
        for e in local[:, slot].unique().tolist():
            if e < 0:  # another rank's expert, or a slot that does nothing
                continue
            tokens = local[:, slot] == e
            w13_e, w2_e = (w.expert(e).dequantize(torch.float32).to(x.dtype).float() for w in (w13, w2))
            gate, up = (x[tokens].float() @ w13_e.T).to(x.dtype).float().chunk(2, 1)
            a = (F.silu(gate).to(x.dtype).float() * up).to(x.dtype)
            y = (a.float() @ w2_e.T).to(x.dtype)
            partial[tokens] += y.float() * topk_weights[tokens, slot, None]
    partial = partial.to(x.dtype)
    out = partial.clone()
    dist.all_reduce(out)  # adds in x.dtype: two ranks know one order, more ranks several
    return {"partial": partial, "out": out}  # a stored partial sum is judged by itself, rank by rank
