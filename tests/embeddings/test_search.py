"""Groups of near-duplicates among vectors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixco.embeddings import search
from mixco.embeddings.search import near_duplicates


def one_by_one(vectors: Tensor, threshold: float) -> list[list[int]]:
    """The definition, on the whole matrix."""
    unit = torch.nn.functional.normalize(vectors, dim=1)
    similarities = unit @ unit.T
    groups: list[list[int]] = []
    free = set(range(len(vectors)))
    for first in range(len(vectors)):
        if first in free:
            group = [i for i in sorted(free) if i >= first and similarities[first, i] >= threshold]
            free -= {first, *group}
            groups.append([first, *(i for i in group if i != first)])
    return [group for group in groups if len(group) > 1]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 40),
    seed=st.integers(0, 10_000),
    threshold=st.sampled_from([0.3, 0.6, 0.9]),
    block=st.integers(1, 9),
    chunk=st.integers(1, 9),
)
def test_blocks_give_what_the_whole_matrix_gives(
    count: int, seed: int, threshold: float, block: int, chunk: int
) -> None:
    vectors = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "BLOCK", block)
        patch.setattr(search, "CHUNK", chunk)
        groups = near_duplicates(vectors, threshold)
    found = sorted([group[0][0], *sorted(row for row, _ in group[1:])] for group in groups)
    assert found == one_by_one(vectors, threshold)
    for group in groups:
        near = [similarity for _, similarity in group]
        assert near == sorted(near, reverse=True) and near[-1] >= threshold - 1e-6
    assert [g[-1][1] for g in groups] == sorted((g[-1][1] for g in groups), reverse=True)


def test_a_chain_is_not_one_group() -> None:
    angles = torch.tensor([0.0, 0.3, 0.6, 0.9])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    groups = near_duplicates(vectors, 0.9)  # cos 0.3 = 0.955, cos 0.6 = 0.825
    assert sorted(sorted(row for row, _ in group) for group in groups) == [[0, 1], [2, 3]]


def test_equal_vectors_are_near_at_a_threshold_of_one() -> None:
    vector = torch.randn(1, 512, generator=torch.Generator().manual_seed(0))
    vectors = torch.cat([vector, -vector, 7 * vector])
    assert near_duplicates(vectors, 1.0) == [[(0, 1.0), (2, pytest.approx(1.0))]]
