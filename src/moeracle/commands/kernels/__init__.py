"""`moeracle kernels`: list, compile, bench, sweep, tune and diff."""
