"""What a kernel computes, a file an op."""
