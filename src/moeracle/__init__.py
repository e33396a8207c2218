"""moeracle: could a correct kernel have produced these bits?

The public face. Names are loaded on first use, so that `import moeracle.ref` costs torch and nothing more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_MODULE_OF = {
    "Case": "moeracle.properties.cases.case",
    "Contract": "moeracle.ref.contracts.contract",
    "NotJudged": "moeracle.tensors.errors",
    "assert_legal": "moeracle.tensors.judge",
    "contract": "moeracle.ref.contracts.contract",
    "judge": "moeracle.properties.judge",
    "judge_argmax": "moeracle.tensors.argmax",
    "judge_tensors": "moeracle.tensors.judge",
    "kernel": "moeracle.target.load",
    "load_checkpoint": "moeracle.checkpoints.checkpoint",
    "tolerance_report": "moeracle.tensors.tolerance",
}
__all__ = [
    "Case",
    "Contract",
    "NotJudged",
    "__version__",
    "assert_legal",
    "contract",
    "judge",
    "judge_argmax",
    "judge_tensors",
    "kernel",
    "load_checkpoint",
    "tolerance_report",
]

if TYPE_CHECKING:
    from .checkpoints.checkpoint import load_checkpoint as load_checkpoint
    from .properties.cases.case import Case as Case
    from .properties.judge import judge as judge
    from .ref.contracts.contract import Contract as Contract
    from .ref.contracts.contract import contract as contract
    from .target.load import kernel as kernel
    from .tensors.argmax import judge_argmax as judge_argmax
    from .tensors.errors import NotJudged as NotJudged
    from .tensors.judge import assert_legal as assert_legal
    from .tensors.judge import judge_tensors as judge_tensors
    from .tensors.tolerance import tolerance_report as tolerance_report


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'moeracle' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
