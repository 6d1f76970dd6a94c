"""Shared by all tests."""

import os

import torch

# Small tensors: more threads only get in each other's way. On a busy machine even two wait for each
# other most of the time; OMP_NUM_THREADS=1 says so.
torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", 2))))
