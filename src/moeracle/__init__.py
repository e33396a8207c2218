"""moeracle: could a correct kernel have produced these bits?

The public face. Names are loaded on first use, so that `import moeracle.ref` costs torch and nothing more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULE_OF = {
    "Case": "moeracle.properties.cases.case",
    "Contract": "moeracle.ref.contracts.contract",
    "contract": "moeracle.ref.contracts.contract",
    "judge": "moeracle.properties.judge",
    "kernel": "moeracle.target.load",
    "load_checkpoint": "moeracle.checkpoints.checkpoint",
}
__all__ = ["Case", "Contract", "__version__", "contract", "judge", "kernel", "load_checkpoint"]

if TYPE_CHECKING:
    from .checkpoints.checkpoint import load_checkpoint as load_checkpoint
    from .properties.cases.case import Case as Case
    from .properties.judge import judge as judge
    from .ref.contracts.contract import Contract as Contract
    from .ref.contracts.contract import contract as contract
    from .target.load import kernel as kernel


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'moeracle' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
