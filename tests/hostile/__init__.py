"""Kernels that try to stop, silence or fool the judge, and tests that none does."""
