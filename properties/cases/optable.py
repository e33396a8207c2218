"""What an op is: its facts as plain data, and the table of all ops, `OPS`, by name.

The facts stand here at the ground so that a case's text can be read without importing anything else. Each op states
them in its record, `properties/ops/X.py`, which also holds its functions; importing `moeracle.properties`
registers all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["OPS", "OWN", "Argument", "Op", "Result"]

# The data, the routing and the weight layout of a case that was not drawn: its tensors were given.
OWN = "own"

ROUTINGS = ("balanced", "uniform", "zipf1", "zipf2", "hot16", "onehot", "empty", "repeat", "ignored")
GEMM_DATA = (
    "normal",
    "outliers",
    "cancelling",
    "wide",
    "subnormal",
    "codes16",
    "integers",
    "onehot",
    "samesign",
    "stagnation",
)
EXACT = ("integers", "samesign", "sweep")  # every order of accumulation gives the same result
NONE = ("-",)
# Words of the routing field. Where this rank's experts are (placement.py), and how ids come: int64, or with the router
# weights cut out of wider rows, as a view of a larger table is.
PLACEMENTS = ("ep2", "ep2last", "eprobin", "epany")
IDS = ("int64", "slices")
# Words of the data field: half of the scales negative; scales and zero points cut out of wider buffers.
SCALES = ("negscale", "cutscale")
VOCABULARY = ("padvocab",)  # of a weight whose last rows are no tokens
HALF = ("bf16", "fp16")

# Words of the layout field: how a weight is besides its layout; a kernel declares those that it reads (`weights`).
WIDTHS = ("w8",)  # codes of 8 bits, an Int8Weight; who declares this gets no others
ROW_ORDERS = ("upgate", "interleaved")  # of w13: up rows first; gate and up rows in turn
SCALE_DTYPES = ("scale16", "scale32")  # scales of the other 16-bit type than D; of fp32
W13_FORMS = (*ROW_ORDERS, "ungated")  # no up rows: w13 [E, I, H]; who declares one of these gets no other form
OF_WEIGHTS = ("act", "short", *SCALE_DTYPES)  # act-order; K % G != 0
OF_EXPERTS = ("bias",)  # one value a row, added to the product

# The zero-point forms that each weight layout is found with, and Int4Weight's name for the stored form; of codes of 8
# bits, an Int8Weight's.
ZERO_LAYOUT: dict[str, dict[str, str | None]] = {
    "exllama": {"sym": None, "rdna": "rdna", "v1": "gptq_v1", "v2": "gptq_v2", "unpacked": "unpacked"},
    "gptq": {"sym": None, "v1": "gptq_v1", "v2": "gptq_v2", "unpacked": "unpacked"},
    "awq": {"sym": None, "asym": "awq", "unpacked": "unpacked"},
    "compressed_tensors": {"sym": None, "asym": "compressed_tensors", "unpacked": "unpacked"},
    "nibble_pairs": {"sym": None, "asym": "nibble_pairs", "unpacked": "unpacked"},
    "exllama_k": {"sym": None, "v1": "gptq_v1", "v2": "gptq_v2"},
    "sequential_n": {"sym": None, "v2": "gptq_v2"},
    "twos_complement": {"sym": None},
    "int8": {"sym": None, "unpacked": "unpacked"},
}
ZERO_LAYOUT8: dict[str, dict[str, str | None]] = {
    "gptq": {"sym": None, "v1": "gptq_v1", "v2": "gptq_v2", "unpacked": "unpacked"},
    "compressed_tensors": {"sym": None, "asym": "compressed_tensors", "unpacked": "unpacked"},
    "bytes": {"sym": None, "unpacked": "unpacked"},
    "int8": {"sym": None, "unpacked": "unpacked"},
}


def code_bits(words: Collection[str]) -> int:
    """Return of how many bits a weight's codes are, by the words of its layout field."""
    return 8 if "w8" in words else 4


def words_of_bits(bits: int) -> tuple[str, ...]:
    """Return the words of a layout field that say of how many bits codes are."""
    return WIDTHS if bits == 8 else ()


def zero_forms(words: Collection[str]) -> dict[str, dict[str, str | None]]:
    """Return ZERO_LAYOUT of weights whose layout field has these words."""
    return ZERO_LAYOUT8 if code_bits(words) == 8 else ZERO_LAYOUT


@dataclass(frozen=True)
class Argument:
    """One argument of an op, as a kernel receives it.

    Args:
        name: the parameter's name; kernels are called positionally, in the order of the record.
        form: dtype and shape in words, D being the activation dtype: "D [T, K]", "Int4Weight [N, K]", "int".
        meaning: one sentence, with the range and what stands for "nothing".
        optional: whether None may be given.
        size: the dimension that a number stands for, e.g. "k" of top_k.
        flag: the modifier of a case that the argument stands for, wherever its value is not plain.
        plain: the value that stands for no modifier.
        within: the least and the largest value of an index, each a number or an expression of sizes: ("-1", "E-1").
        read: how many of its entries are read, an expression of sizes and of other arguments' one value; "": all.
    """

    name: str
    form: str
    meaning: str
    optional: bool = False
    size: str = ""
    flag: str = ""
    plain: Any = None
    within: tuple[str, str] | None = None
    read: str = ""


@dataclass(frozen=True)
class Result:
    """One tensor that a kernel returns, or one stage that it may store.

    Args:
        name: "out", a stage (h, a, y) or the name of a part of a tuple.
        form: dtype and shape, as an Argument's.
        meaning: one sentence.
        axes: what the dimensions are called in reports.
    """

    name: str
    form: str
    meaning: str
    axes: tuple[str, ...]


class Op:
    """The facts of one op. A record states them as class attributes; ("-",) stands for a field without meaning.

    Attributes:
        name: the first field of a case.
        summary: what it computes, in one sentence with the formula.
        arguments: what a kernel is called with, in order.
        results: what a kernel returns; of a layer the stages in order, "out" last.
        dims: dimension letters in canonical order.  optional: letters that may be absent.
        dtypes, routings, data: legal names, the plainest first.
        weight: whether the op reads an int4 weight, so that layout-zero has meaning.
        routing_flags, data_flags: modifiers of the routing and the data field.
        layer: whether it consists of two GEMMs, whose stages h, a and y a kernel may store too.
        extra: an argument after the others that a kernel need not take, and that only some cases bring (PLACEMENTS).
        default_contract: the contract an op is judged under when none is named.
        plain_sizes: sizes of the op's plainest cases where they are not those of every op (hunt/must_run.py).
        also_run: further fixed cases, as what differs from the plainest one: sizes by letter, flags, data.
        starter: the body of a right kernel in torch, to start from; `moeracle new` writes it.
        starter_contract: what that kernel rounds; "" where no contract has a say.
    """

    name: str = ""
    summary: str = ""
    arguments: tuple[Argument, ...] = ()
    results: tuple[Result, ...] = ()
    dims: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = HALF
    weight: bool = False
    routings: tuple[str, ...] = NONE
    data: tuple[str, ...] = ("normal",)
    routing_flags: tuple[str, ...] = ()
    data_flags: tuple[str, ...] = ()
    layer: bool = False
    extra: Argument | None = None
    default_contract: str = "grouped"
    plain_sizes: Mapping[str, int] = {}
    also_run: tuple[Mapping[str, Any], ...] = ()
    starter: str = ""
    starter_contract: str = ""

    @property
    def weight_flags(self) -> tuple[str, ...]:
        """The words that the layout field may have."""
        if not self.weight:
            return ()
        routed = "E" in self.dims and "E" not in self.optional
        forms = W13_FORMS if self.layer and routed else ROW_ORDERS if self.layer else ()
        return (*OF_WEIGHTS, *WIDTHS, *(OF_EXPERTS if routed else ()), *forms)

    def signature(self, function: str = "kernel") -> str:
        """Return how a kernel is called, as the first line of its definition without the `def`."""
        return f"{function}({', '.join(argument.name for argument in self.arguments)})"

    def build(self, case: Any) -> Any:
        """Return the Problem of a Case of this op, made on the CPU: the same bits on every machine."""
        raise NotImplementedError(f"{self.name}: build")

    def weight_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
        """Return the (N, K) of each int4 weight argument by its name; empty for an op without one."""
        return {"w": (sizes["N"], sizes["K"])} if self.weight else {}

    def matrix_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
        """Return the (N, K) of each matrix that activations are multiplied by, whatever its elements are."""
        return self.weight_shapes(sizes)

    def implied_size(self, letter: str, sizes: dict[str, int]) -> int | None:
        """Return a dimension that follows from those in the text (N and K of a layer's first GEMM), else None."""
        return None

    def sizes_of(self, letter: str, sizes: dict[str, int]) -> tuple[int, ...]:
        """Return the sizes that a letter of this op alone may have, the plainest first; () for any other letter.

        Args:
            letter: one of dims.
            sizes: of the letters before it.
        """
        return ()

    def __repr__(self) -> str:
        return f"Op({self.name})"


OPS: dict[str, Op] = {}


def register(op: Op) -> None:
    """Add an op to OPS; the order of registration is the order in which ops are listed everywhere."""
    assert op.name not in OPS, f"op {op.name!r} is registered twice"
    OPS[op.name] = op
