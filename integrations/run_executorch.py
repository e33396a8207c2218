"""Run executorch's test_eager_correctness as the patch leaves it, on a CPU.

    MOERACLE_EXECUTORCH=FOLDER python integrations/run_executorch.py

FOLDER holds the unpacked executorch 1.5.1 wheel. The file is patched in a temporary folder; "cuda" is read as "cpu" in
it, modules that only an export needs are left out, and its Triton kernels run in the corrected interpreter with fixed
blocks. For each configuration it prints what the test's old tolerance lets pass.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import types
import unittest.mock
from pathlib import Path
from typing import Any

import moeracle
from moeracle.clients.executorch import host_module
from moeracle.clients.packages import file_of

PATCH = Path(__file__).with_name("executorch_test_eager_correctness.patch")
TEST = "backends/cuda/tests/test_fused_moe.py"
OLD = 0.05  # of the largest element


def patched(folder: Path) -> str:
    """Return the test file's text with the patch applied."""
    source = file_of("executorch", TEST)
    if source is None:
        raise SystemExit("error: MOERACLE_EXECUTORCH: must name a folder with an unpacked executorch wheel")
    copy = folder / TEST
    copy.parent.mkdir(parents=True)
    copy.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run(["git", "apply", str(PATCH)], cwd=folder, check=True)
    return copy.read_text(encoding="utf-8")


def assert_legal(op: str, out: Any, *args: Any, client: str) -> None:
    """Judge, and say what the old tolerance lets pass: moeracle's function with a report beside it."""
    moeracle.assert_legal(op, out, *args, client=client, save=False)
    atol = OLD * float(out.float().abs().max())
    report = moeracle.tolerance_report(op, out, *args, client=client, atol=atol, rtol=0.0)
    print(f"T{args[0].shape[0]}: legal\n{report}\nmissed: {' '.join(report.missed)}\n", flush=True)


def main() -> int:
    """Run the test; return 0 if all configurations are legal."""
    with tempfile.TemporaryDirectory() as folder:
        text = patched(Path(folder)).replace('"cuda"', '"cpu"').replace(".cuda()", "")
    text = text.replace("from moeracle import assert_legal\n", "")
    kernels = "executorch.backends.cuda.triton.kernels.fused_moe"
    names = [kernels, *(f"executorch.{name}" for name in ("exir", "exir.passes"))]
    names += [f"executorch.backends.cuda.cuda_{part}" for part in ("backend", "partitioner")]
    stubs: dict[str, Any] = {name: unittest.mock.MagicMock() for name in names}
    stubs[kernels] = host_module()
    module = types.ModuleType("patched_test")
    module.__dict__.update(__file__=str(PATCH), assert_legal=assert_legal)
    with unittest.mock.patch.dict(sys.modules, stubs):
        exec(compile(text, "test_fused_moe.py", "exec"), module.__dict__)
    case = module.TestFusedMoE("test_eager_correctness")
    case.setUp = lambda: None  # it asks for CUDA
    return not unittest.TextTestRunner().run(case).wasSuccessful()


if __name__ == "__main__":
    sys.exit(main())
