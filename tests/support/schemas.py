"""What commands wrote, held against the published schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moeracle.properties.report.schemas import SCHEMAS


def fits(name: str, path: str | Path) -> Any:
    """Return what a file says; it must be as its schema has it, with no field that the schema does not name.

    Args:
        name: of the schema.
        path: of the file.
    """
    text = Path(path).read_text(encoding="utf-8")
    SCHEMAS[name].model_validate_json(text, extra="forbid")
    return json.loads(text)
