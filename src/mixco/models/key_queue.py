"""MoCo's queue: the keys of earlier batches, as negatives (He et al. 2020, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixco.runtime.distributed import local_rows


class KeyQueue(nn.Module):
    """A ring buffer of K keys of unit length; K and the batch size are independent.

    The buffers `keys` [K, C] and `pointer` (int64, the place of the next key) are saved with the model.
    size: K. dim: C. generator: draws the first keys. Raises ValueError for a size below one.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"the queue needs at least one key, got a size of {size}")
        random = torch.randn(size, dim, generator=generator)
        self.register_buffer("keys", F.normalize(random, dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Overwrite the oldest keys with `keys` [B, C], for any B.

        Of a batch larger than the queue, the last K keys stay. The pointer never leaves the device:
        reading it on the host would wait for the step.
        """
        size = self.keys.shape[0]
        dropped = max(0, keys.shape[0] - size)
        kept = keys[dropped:].to(self.keys.dtype)
        offsets = torch.arange(dropped, keys.shape[0], device=keys.device)
        self.keys.index_copy_(0, (self.pointer + offsets) % size, kept)
        self.pointer.add_(keys.shape[0]).remainder_(size)


def own_key(batch: int, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The target of a query that is compared with its own key and the queue (He et al. 2020, eq. 1).

    batch: B, of all processes. candidates: [B + K, C], the keys of the batch, then those of the queue.

    Returns, for the b queries of this process, the target, float32 [b, B], which is one at the own key,
    and the candidates that are left out, bool [b, B + K]: the keys of the batch's other images.
    """
    rows = local_rows(batch, candidates.device)
    own = rows[:, None] == torch.arange(batch, device=candidates.device)
    return own.float(), F.pad(~own, (0, len(candidates) - batch))
