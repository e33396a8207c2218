"""What tests of several files use: simulated kernels, made repositories, a browser."""
