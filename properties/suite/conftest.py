"""Keeps the suite out of a collection that names no kernel."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect nothing here unless the plugin has kernels to judge."""
    return None if config.pluginmanager.hasplugin("moeracle-judging") else True
