"""Tests run on one thread: two processes on two cores are then faster, and nothing may depend on the thread count."""

import torch

torch.set_num_threads(1)
