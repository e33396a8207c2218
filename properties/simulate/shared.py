"""A simulated shared expert and a simulated tiny dot, step by step."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.weights.weight import Int4Weight

from .moe import LayerSteps
from .weights import rounded


class SharedOps(LayerSteps):
    """shared_expert, its stages one by one, and tiny_dot; each method below an op's is a step."""

    def shared_expert(
        self, x: torch.Tensor, w_gate_up: Int4Weight, w_down: Int4Weight, gate_weight: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        args = {"x": x, "w_gate_up": w_gate_up, "w_down": w_down, "gate_weight": gate_weight}
        stages: dict[str, torch.Tensor] = {}
        for stage in ("h", "a", "y", "out"):
            stages[stage] = self.shared_stage(stage, args, stages)
        stages["out"] = self.result(stages["out"])
        return {name: stages[name] for name in self.contract.stores}

    def shared_stage(self, stage: str, args: dict[str, Any], before: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute one stage of shared_expert from the stage before it.

        Args:
            stage: h, a, y (before the gate) or out.
            args: the op's arguments by name.
            before: the stages before this one; "a" reads h, "y" reads a, "out" reads y.
        Returns:
            the stage, in D if the contract stores it, else fp32.
        """
        x = self.read(args["x"])
        dtype = x.dtype
        if stage == "h":
            return self.dense(x, args["w_gate_up"], "w13", "h", dtype)
        if stage == "a":
            return self.stored(self.store(self.activation(before["h"], dtype), dtype, "a"), "a")
        if stage == "y":
            return self.dense(before["a"], args["w_down"], "w2", "y", dtype)
        y, gate = before["y"].float(), args["gate_weight"]
        if gate is None:
            return self.store(y, dtype, "out")
        if self.contract.gate != "fp32":
            y = rounded(y, dtype, self.contract.rounding("y", dtype)).float()
        dot = self.gate_dot(x, gate, dtype)
        return self.store(self.gated(y, self.store_gate(self.sigmoid(dot), dtype)), dtype, "out")

    def dense(self, a: torch.Tensor, w: Int4Weight, which: str, stage: str, dtype: torch.dtype) -> torch.Tensor:
        """Multiply all rows by one int4 matrix: D where the stage is stored, else fp32."""
        return self.stored(self.store(self.dot(a, self.load(w, None, dtype, which), dtype, which), dtype, stage), stage)

    def gate_dot(self, x: torch.Tensor, gate: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Compute x·g, [T, 1] fp32, rounded to D if another kernel stored it on the way."""
        dot = self.accumulate(self.operand(x, "gate"), gate.reshape(1, -1).float(), dtype)
        return (
            rounded(dot, dtype, self.contract.rounding("y", dtype)).float() if self.contract.gate == "unfused" else dot
        )

    def sigmoid(self, dot: torch.Tensor) -> torch.Tensor:
        """Compute 1 / (1 + exp(-dot)) in fp32."""
        return 1 / (1 + torch.exp(-dot))

    def store_gate(self, gate: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Round the gate as the contract does before it meets the output: fp32."""
        return (
            gate if self.contract.gate == "fp32" else rounded(gate, dtype, self.contract.rounding("y", dtype)).float()
        )

    def gated(self, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Multiply y [T, H] and the gate [T, 1] in fp32."""
        return y * gate

    def tiny_dot(self, x: torch.Tensor, w: torch.Tensor, sigmoid: bool) -> torch.Tensor:
        dot = self.accumulate(self.operand(self.read(x), "tiny"), w.reshape(1, -1).float(), x.dtype)
        return self.result(self.store(self.sigmoid(dot) if sigmoid else dot, x.dtype, "out"))
