"""`moeracle schema`: the JSON Schema of the files that commands write."""

from __future__ import annotations

from moeracle.properties.report.schemas import SCHEMAS, schema_text

from .console import print_table, say


def run_schema(name: str | None) -> int:
    """Print one schema, or what there is.

    Raises:
        ValueError: there is none of this name.
    """
    if name is not None:
        say(schema_text(name).rstrip())
        return 0
    rows = [(key, " ".join((model.__doc__ or "").split())) for key, model in SCHEMAS.items()]
    print_table(["schema", "about"], rows, text_columns=2)
    say("moeracle schema NAME prints one")
    return 0
