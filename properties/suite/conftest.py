"""Keeps the suite out of a collection that names no kernel."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect nothing here unless the plugin has kernels to judge, and known failures only where some are named."""
    judging = config.pluginmanager.hasplugin("moeracle-judging")
    needless = collection_path.name == "test_known.py" and not config.getoption("moeracle_known")
    return None if judging and not needless else True
