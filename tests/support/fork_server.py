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
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LONGEST = 1800  # seconds


@contextmanager
def forking(folders: Any, env: dict[str, str], *modules: str) -> Iterator[Callable[..., Any]]:
    """(script, *arguments) -> how it ended, forked from a process that has these modules.

    Args:
        folders: pytest's tmp_path_factory.
        env: of that process.
        modules: their names.
    """
    command = [sys.executable, __file__, *modules]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def ask(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            printed, errors = (folders.mktemp("fork") / name for name in ("printed", "errors"))
            printed.touch()
            errors.touch()
            asked = {"script": script, "arguments": arguments, "printed": str(printed), "errors": str(errors)}
            print(json.dumps(asked), file=server.stdin, flush=True)
            status = int(server.stdout.readline() or server.wait()) if server.stdout else 1
            return subprocess.CompletedProcess(script, status, printed.read_text(), errors.read_text())

        yield ask


def run(asked: dict[str, Any]) -> None:
    """Run one script and end this process, which is a fork."""
    signal.alarm(LONGEST)
    gc.disable()  # a script ends before its garbage matters
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
