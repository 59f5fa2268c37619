"""The order of an epoch is a permutation that looks random, is never stored, and keeps to few blocks where it must."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from sightline.data.pairs import Block
from sightline.data.shuffle import BlockOrder, Order, order, order_of_blocks


def whole(n: int, seed: int = 0, epoch: int = 0) -> list[int]:
    return order(n, seed, epoch).at(np.arange(n)).tolist()


def surplus(counts: np.ndarray, expected: float, freedom: int) -> float:
    """How far chi-square is above what chance gives, in standard deviations."""
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 16, 97, 1000, 65_537])
def test_every_thing_comes_once(n: int) -> None:
    assert sorted(whole(n, seed=3)) == list(range(n))


def test_a_place_can_be_asked_for_alone_and_the_order_of_millions_costs_nothing() -> None:
    assert [order(50, 1, 2)[i] for i in range(50)] == whole(50, 1, 2)
    things = order(10**12, 1, 2).at(np.arange(1000))
    assert len(set(things.tolist())) == 1000
    assert 0 <= things.min() < things.max() < 10**12


def test_the_order_is_the_same_on_every_machine() -> None:
    """A run that goes on elsewhere goes on with these: if this changes, runs cannot be resumed."""
    assert whole(10, seed=7, epoch=1) == [9, 8, 1, 3, 7, 4, 2, 0, 6, 5]
    assert order(12_345_678, 7, 1)[0] == 5_004_777


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"seed": -1}, {"seed": 2**63}])
def test_seeds_and_epochs_have_orders_of_their_own(other: dict) -> None:
    same_place = sum(a == b for a, b in zip(whole(1000), whole(1000, **other), strict=True))
    assert same_place < 10


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_of_few_things_every_order_is_equally_likely(n: int) -> None:
    orders = Counter(tuple(whole(n, seed, epoch)) for seed in range(30) for epoch in range(100))
    counts = np.array([orders[o] for o in itertools.permutations(range(n))])
    assert surplus(counts, 3000 / len(counts), len(counts) - 1) < 4


@pytest.mark.parametrize("n", [7, 12, 30, 64])
def test_every_thing_is_everywhere_equally_often_and_so_is_every_distance(n: int) -> None:
    places, distances = np.zeros((n, n)), np.zeros(n)
    for seed in range(1000):
        things = np.array(whole(n, seed))
        places[np.arange(n), things] += 1
        np.add.at(distances, (things[1:] - things[:-1]) % n, 1)
    assert surplus(places, 1000 / n, (n - 1) ** 2) < 4
    assert surplus(distances[1:], 1000, n - 2) < 4


def test_blocks_that_fit_into_memory_are_one() -> None:
    blocks = [Block(10, 5), Block(20, 5), Block(1000)]
    assert isinstance(order_of_blocks(blocks, 10, 0, 0), Order)
    assert isinstance(order_of_blocks(blocks, 9, 0, 0), BlockOrder)


def test_blocks_that_do_not_fit_are_mixed_a_few_at_a_time() -> None:
    blocks = [Block(10, memory=1)] * 40
    in_order = order_of_blocks(blocks, 8, seed=3, epoch=0)
    things = in_order.at(np.arange(400))
    assert sorted(things.tolist()) == list(range(400))
    for start in range(0, 400, 80):
        assert len(set(things[start : start + 80] // 10)) == 8
    assert len(set(things[:10] // 10)) > 2
    assert [in_order[i] for i in (0, 79, 80, 399)] == things[[0, 79, 80, 399]].tolist()
    assert (order_of_blocks(blocks, 8, 3, epoch=1).at(np.arange(400)) != things).any()


def test_sources_that_follow_one_another_are_mixed_in_every_window_as_in_the_whole() -> None:
    blocks = [Block(10, memory=1)] * 30 + [Block(10, memory=3)] * 60 + [Block(10, memory=1)] * 10
    for epoch in range(3):
        things = order_of_blocks(blocks, 44, seed=0, epoch=epoch).at(np.arange(1000))
        assert sorted(things.tolist()) == list(range(1000))
        for start in range(0, 1000, 200):  # of five windows
            part = things[start : start + 200]
            assert 0.2 < (part < 300).mean() < 0.4
            assert 0.5 < ((part >= 300) & (part < 900)).mean() < 0.7


def test_uneven_and_empty_blocks_and_one_too_large_lose_nothing() -> None:
    blocks = [Block(7, 3), Block(0, 3), Block(2500), Block(1, 100), Block(12, 4)]
    things = order_of_blocks(blocks, 8, seed=0, epoch=0).at(np.arange(2520))
    assert sorted(things.tolist()) == list(range(2520))
