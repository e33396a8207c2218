"""Cases: one line of text that stands for a problem, and how the problem is built."""
