"""Random numbers by explicit generators: the same (seed, purpose, step) gives the same draws."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator_for(seed: int, purpose: str, rank: int = 0, step: int = 0) -> torch.Generator:
    """A separate CPU generator for one purpose at one step of one rank.

    The seed is a hash, not a sum, so that neighbouring seeds and steps draw unrelated numbers.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{rank}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@contextmanager
def global_draws(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Inside, `generator` seeds torch's global generators; afterwards they are as before.

    Needed because dropout and stochastic depth take no generator: they draw from the global one of their
    device. (The generator of Apple's devices cannot be restored; nothing else in mixco draws from it.)
    """
    seed = generator.initial_seed()
    with torch.random.fork_rng([torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield
