"""Files of the kernels, such as a tuning table or a build, are written whole or not at all."""

from __future__ import annotations

import os

import pytest

from moeracle.kernels.common.files import write_whole


def test_a_file_is_replaced_whole(tmp_path):
    table = tmp_path / "gpu.json"
    table.write_text("old")
    with table.open() as reader:
        assert write_whole(table, b"new") == table
        assert reader.read() == "old"  # who was reading it goes on reading the old file
    assert table.read_text() == "new"
    assert list(tmp_path.iterdir()) == [table]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def full(source, destination):
        raise OSError(28, "No space left on device", str(destination))

    table = tmp_path / "gpu.json"
    table.write_text("old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(table, b"new")
    assert table.read_text() == "old"
    assert list(tmp_path.iterdir()) == [table]
