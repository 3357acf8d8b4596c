"""Every epoch is a permutation, in constant memory and for any length."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgray.plan import permute, sample_at


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(-5, 2**70), st.integers(0, 50))
def test_each_epoch_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    samples = [sample_at(epoch * length + i, length, seed) for i in range(length)]
    assert sorted(samples) == list(range(length))


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(sample_at(epoch * 100 + i, 100, seed) for i in range(100)) for epoch in range(5) for seed in range(5)
    }
    assert len(orders) == 25


@given(st.integers(1, 2**40), st.integers(0, 2**63), st.data())
def test_permutation_stays_inside_any_length(length: int, key: int, data: st.DataObject) -> None:
    a, b = (data.draw(st.integers(0, length - 1)) for _ in range(2))
    assert 0 <= permute(a, length, key) < length
    assert (permute(a, length, key) == permute(b, length, key)) == (a == b)


def test_an_index_outside_is_refused() -> None:
    for index in (-1, 10):
        with pytest.raises(IndexError):
            permute(index, 10, 0)


@pytest.mark.parametrize("length", [7, 100])
def test_places_are_uniform(length: int) -> None:
    """Each sample comes first about equally often over many epochs (chi-squared, 5 sigma)."""
    epochs = 200 * length
    counts = [0] * length
    for epoch in range(epochs):
        counts[sample_at(epoch * length, length, seed=1)] += 1
    chi = sum((count - 200) ** 2 / 200 for count in counts)
    assert abs(chi - (length - 1)) < 5 * (2 * (length - 1)) ** 0.5


def test_neighbours_do_not_stay_neighbours() -> None:
    length = 10_000
    samples = [sample_at(i, length, seed=0) for i in range(length)]
    close = sum(abs(a - b) < length // 100 for a, b in itertools.pairwise(samples))
    assert close / length == pytest.approx(0.02, abs=0.007)
