"""Judging tensors that a test already has: no case, no kernel, no run."""
