"""Finds images that look alike: frames of a film, or the same picture in another quality.

The hash of a thumbnail has 64 bits: is a place lighter than the one on its left? Pairs whose hashes
differ in few bits are found band by band, and then compared by their pixels.
"""

import numpy as np
from numpy.typing import NDArray

BANDS = 4  # hashes that differ in fewer bits than there are bands are equal in one of the bands
WINDOW = 200  # each hash is compared with this many after it, in the order of a band
CORRELATION = 0.98
LIGHTER = 16  # of 255 levels


def near_copies(thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pairs that look alike, int64 [P, 2], the first below the second, sorted.

    thumbnails: uint8 [N, 16, 16]. Among thousands of equal hashes (images of one colour) some pairs are
    missed.
    """
    hashes = _hashes(thumbnails)
    pairs = np.unique(np.concatenate([*_candidates(hashes)]), axis=0)
    return pairs[_look_alike(thumbnails, pairs)]


def _hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    count = len(thumbnails)
    blocks = thumbnails.reshape(count, 8, 2, 8, 2).mean((2, 4))
    lighter = blocks > np.roll(blocks, 1, axis=2)
    return np.packbits(lighter.reshape(count, 64), axis=1).view(np.uint64)[:, 0]


def _candidates(hashes: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """Pairs [P, 2] whose hashes differ in fewer than BANDS bits."""
    found = [np.empty((0, 2), np.int64)]
    width = 64 // BANDS
    for band in range(BANDS):
        # The band's bits come first, so equal ones lie together, and the likest of them closest.
        turned = np.uint64(band * width)
        key = hashes << turned | hashes >> (np.uint64(64) - turned) if band else hashes
        order = np.argsort(key, kind="stable")
        ordered, start = hashes[order], key[order] >> np.uint64(64 - width)
        for step in range(1, min(WINDOW, len(order))):
            same = np.flatnonzero(start[:-step] == start[step:])
            if not len(same):
                break
            few = _bits(ordered[same] ^ ordered[same + step]) < BANDS
            pair = np.stack([order[same[few]], order[same[few] + step]], axis=1)
            found.append(np.sort(pair, axis=1))
    return found


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    bytes_of = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)
    count: NDArray[np.int64] = _BITS[bytes_of].sum(1)
    return count


_BITS = np.array([bin(byte).count("1") for byte in range(256)])


def _look_alike(thumbnails: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [P]: are the pixels of both correlated, and their mean lightness about the same?"""
    alike = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 4096):
        some = pairs[start : start + 4096]
        a, b = (thumbnails[some[:, i]].reshape(len(some), -1).astype(np.float32) for i in (0, 1))
        close = np.abs(a.mean(1) - b.mean(1)) < LIGHTER
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        both = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        alike[start : start + 4096] = close & ((a * b).sum(1) > CORRELATION * np.maximum(both, 1))
    return alike
