"""Group duplicate files, by their digests, and similar images, by their difference hashes."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Bits of 64 in which the difference hashes of near duplicates differ. In CIFAR-10, 23 of 24 pairs
# that differ in 4 bits show the same picture; of pairs that differ in 6 bits, three quarters do.
MAX_DISTANCE = 4
_NUM_BANDS = MAX_DISTANCE + 1  # two such hashes are equal in at least one band
_HASH_BITS = 64

_Hashes = npt.NDArray[np.uint64]
_Indices = npt.NDArray[np.intp]


def group_equal(digests: Sequence[str]) -> list[list[int]]:
    """Group the indices of equal digests; a digest that occurs once is in no group."""
    groups = defaultdict(list)
    for index, digest in enumerate(digests):
        groups[digest].append(index)
    return [group for group in groups.values() if len(group) > 1]


def group_similar(hashes: Sequence[int], max_distance: int = MAX_DISTANCE) -> list[list[int]]:
    """Group the indices of hashes that differ in few bits, directly or through other hashes.

    Args:
        hashes: The difference hashes, of 64 bits.
        max_distance: The maximum number of bits in which two hashes differ, 0 to `MAX_DISTANCE`.

    Returns:
        The groups of two or more indices.
    """
    unique, members = np.unique(np.array(hashes, np.uint64), return_inverse=True)
    first, second = _find_pairs(unique, max_distance)
    graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(len(unique),) * 2)
    labels = connected_components(graph, directed=False)[1][members]
    groups: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels.tolist()):
        groups[label].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _find_pairs(hashes: _Hashes, max_distance: int) -> tuple[_Indices, _Indices]:
    """Find the pairs of different hashes within a distance; a pair may be found more than once.

    Hashes that differ in k bits are equal in one of k + 1 bands of bits (the pigeonhole principle):
    only hashes that are equal in a band are compared, instead of each with all others.
    """
    pairs: list[tuple[_Indices, _Indices]] = [(np.empty(0, np.intp),) * 2]
    for number in range(_NUM_BANDS):
        # Each band has bits from the whole image: in images with a white margin, a band with only
        # bits of the margin is the same for all images.
        band = hashes & np.uint64(sum(1 << bit for bit in range(number, _HASH_BITS, _NUM_BANDS)))
        order = np.argsort(band, kind="stable")
        band, ordered = band[order], hashes[order]
        # Compare each hash with its first neighbor in the sorted band, then the second, and so on.
        active, offset = np.arange(len(band)), 0
        while len(active):
            offset += 1
            active = active[: np.searchsorted(active, len(band) - offset)]
            active = active[band[active] == band[active + offset]]
            distance = np.bitwise_count(ordered[active] ^ ordered[active + offset])
            near = active[distance <= max_distance]
            if len(near):
                pairs.append((order[near], order[near + offset]))
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return first, second
