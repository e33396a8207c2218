"""A process that imports once what takes seconds, and then runs each script in a fork of itself.

    python fork_server.py MODULE…

It reads one JSON object a line, {"script", "arguments", "printed", "errors"}, and answers each with its exit status.
The script finds its arguments in sys.argv; what it prints goes to the file `printed`, its errors to `errors`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any

LONGEST = 1800  # seconds


def run(asked: dict[str, Any]) -> None:
    """Run one script and end this process, which is a fork."""
    signal.alarm(LONGEST)
    for file, number in (("printed", 1), ("errors", 2)):
        with open(asked[file], "wb") as to:
            os.dup2(to.fileno(), number)
    sys.argv = ["-c", *asked["arguments"]]
    status = 1
    try:
        exec(compile(asked["script"], "script", "exec"), {"__name__": "__main__"})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Answer until the input ends."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()  # no fork looks through them for garbage
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
