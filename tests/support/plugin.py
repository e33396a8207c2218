"""Whether pytest loads moeracle's plugin by itself, which it does where moeracle is installed as a package."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

needs_plugin = pytest.mark.skipif(
    not any(point.value == "moeracle.pytest_plugin" for point in entry_points(group="pytest11")),
    reason="moeracle is not installed as a package: pytest finds no entry point of its plugin in the group pytest11",
)
