"""Shared by all tests."""

import torch

# Small tensors on two cores: more threads only get in each other's way.
torch.set_num_threads(2)
