"""Applies an operation to some images of a batch, in place where possible."""

from collections.abc import Callable

from torch import Tensor


def apply_to_rows(
    x: Tensor, rows: Tensor, operation: Callable[..., Tensor], *numbers: Tensor
) -> Tensor:
    """Apply `operation` to the selected rows, in place where possible. Use the return value.

    x: [B, ...]. rows: int64 [b], ascending, on x's device. numbers: further arguments, b rows each. The
    operation may change its first argument.
    """
    if len(rows) == 0:
        return x
    if len(rows) == len(x):
        return operation(x, *numbers)
    if len(rows) == 1 and x.device.type == "cpu":
        one = x[int(rows)][None]
        one.copy_(operation(one, *numbers))
        return x
    return x.index_copy_(0, rows, operation(x[rows], *numbers))
