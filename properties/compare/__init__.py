"""Comparing what a kernel stored with what it may have stored, element by element."""
