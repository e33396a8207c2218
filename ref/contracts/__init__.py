"""Contracts: every rounding that a kernel may make."""
