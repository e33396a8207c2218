"""Benchmarks: kernels are judged, and what is legal is timed."""
