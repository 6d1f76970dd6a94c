"""Random numbers by explicit generators: the same (seed, purpose, step) gives the same draws."""

import hashlib

import torch


def generator_for(seed: int, purpose: str, rank: int = 0, step: int = 0) -> torch.Generator:
    """A CPU generator of its own for one purpose at one step of one rank.

    Hashed rather than summed, so that neighbouring seeds and steps share nothing.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{rank}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
