"""`python -m moeracle`: the same as the `moeracle` command."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
