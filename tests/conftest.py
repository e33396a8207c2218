"""What holds for every test: one thread, and one moeracle, in the processes that tests start as well."""

import os
from pathlib import Path

import torch

# Two processes on two cores are faster so, and nothing may depend on the thread count.
torch.set_num_threads(1)


def pytest_configure() -> None:
    """Make PYTHONPATH absolute: tests start processes in other folders, where `PYTHONPATH=src` would find nothing."""
    if os.environ.get("PYTHONPATH"):
        found = (str(Path(path).absolute()) for path in os.environ["PYTHONPATH"].split(os.pathsep) if path)
        os.environ["PYTHONPATH"] = os.pathsep.join(found)
