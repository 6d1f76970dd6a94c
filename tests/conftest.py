"""Shared by all tests."""

import os

import torch

# Small tensors on two cores: more threads only get in each other's way.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
