"""`python -m moeracle`: the same as the `moeracle` command."""

from __future__ import annotations

import os
import sys

if sys.path[:1] in (
    [""],
    [os.getcwd()],
):  # what lies in the current folder is a kernel's, perhaps, and no module of ours
    del sys.path[0]

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
