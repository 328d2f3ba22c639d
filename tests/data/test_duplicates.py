"""Duplicate files and similar images, by their digests and difference hashes."""

import itertools
import random

import pytest

from pyclassify.data.duplicates import MAX_DISTANCE, group_equal, group_similar


def test_equal_digests_are_grouped():
    assert group_equal(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4]]
    assert group_equal([]) == []


def flip(value, *bits):
    for bit in bits:
        value ^= 1 << bit
    return value


@pytest.mark.parametrize("distance", range(MAX_DISTANCE + 3))
def test_hashes_are_grouped_up_to_a_distance(distance):
    rng = random.Random(distance)
    for _ in range(50):
        one = rng.getrandbits(64)
        other = flip(one, *rng.sample(range(64), distance))

        assert bool(group_similar([one, other])) == (distance <= MAX_DISTANCE)


def test_groups_are_those_of_all_pairs():
    rng = random.Random(0)
    hashes = [rng.getrandbits(64) for _ in range(30)]
    hashes += [
        flip(rng.choice(hashes), *rng.sample(range(64), rng.randint(0, 6))) for _ in range(200)
    ]

    group_of = list(range(len(hashes)))
    for one, other in itertools.combinations(range(len(hashes)), 2):
        if (hashes[one] ^ hashes[other]).bit_count() <= MAX_DISTANCE:
            old, new = group_of[other], group_of[one]
            group_of = [new if group == old else group for group in group_of]
    expected = {
        tuple(index for index, group in enumerate(group_of) if group == number)
        for number in set(group_of)
        if group_of.count(number) > 1
    }

    assert {tuple(sorted(group)) for group in group_similar(hashes)} == expected


def test_group_similar_of_none_and_of_one_is_empty():
    assert group_similar([]) == group_similar([5]) == []


def test_equal_hashes_of_many_images_are_one_group():
    assert [len(group) for group in group_similar([0] * 100_000)] == [100_000]
