"""Texts that are nearly the same, among millions: MinHash, and buckets of equal bands.

In: texts. Out: groups of them. (Broder, "On the resemblance and containment of documents", 1997.)
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

import numpy as np

SHINGLE = 3  # words
BANDS = 16
ROWS = 4  # two texts of similarity s share a bucket with probability 1 - (1 - s^ROWS)^BANDS
_PRIME = (1 << 31) - 1
_WORD = re.compile(r"[^\W_]+")
_MOST_COMPARED = 50  # earlier texts of a bucket that a text is compared with


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return _WORD.findall(text.lower())


@lru_cache(maxsize=4096)
def shingles(text: str) -> frozenset[int]:
    """Hashes of all runs of three words; a shorter text is one run."""
    words = words_of(text)
    runs = range(max(1, len(words) - SHINGLE + 1))
    return frozenset(crc32(" ".join(words[i : i + SHINGLE]).encode()) for i in runs)


def similarity(first: frozenset[int], second: frozenset[int]) -> float:
    """Jaccard similarity: what two sets share, as a part of what they hold together."""
    return len(first & second) / len(first | second) if first or second else 1.0


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> list[list[int]]:
    """Groups of two and more texts, each at least `threshold` similar to an earlier one of its group.

    Positions, in order. Buckets propose pairs and the exact similarity decides, so that none is wrongly
    named; a pair of similarity 0.8 is missed with a probability of 0.02%.
    """
    first_of: dict[str, int] = {}
    same_as = [first_of.setdefault(" ".join(words_of(text)), i) for i, text in enumerate(texts)]
    signatures = _signatures(texts, [i for i, first in enumerate(same_as) if i == first])
    leader = _grouped_by_bands(texts, signatures, threshold)
    groups: dict[int, list[int]] = {}
    for i, first in enumerate(same_as):
        groups.setdefault(_top(leader, first), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _signatures(texts: Sequence[str], positions: list[int]) -> dict[int, np.ndarray]:
    """For each text, the least value of its shingles under BANDS * ROWS hash functions, as bands."""
    rng = np.random.default_rng(0)
    factors, offsets = rng.integers(1, _PRIME, (2, BANDS * ROWS, 1), dtype=np.uint64)
    found = {}
    for i in positions:
        hashes = np.fromiter(shingles(texts[i]), np.uint64) % _PRIME
        least = ((factors * hashes + offsets) % _PRIME).min(axis=1)
        found[i] = least.astype(np.uint32).reshape(BANDS, ROWS)
    return found


def _grouped_by_bands(
    texts: Sequence[str], signatures: dict[int, np.ndarray], threshold: float
) -> dict[int, int]:
    """The earlier text that each joins, for those that join one."""
    leader: dict[int, int] = {}
    for band in range(BANDS):
        buckets: dict[bytes, list[int]] = {}
        for i, signature in signatures.items():
            buckets.setdefault(signature[band].tobytes(), []).append(i)
        for members in buckets.values():
            for at in range(1, len(members)):
                _join(texts, members[max(0, at - _MOST_COMPARED) : at], members[at], leader, threshold)
    return leader


def _join(texts: Sequence[str], earlier: list[int], i: int, leader: dict[int, int], threshold: float) -> None:
    """Put text `i` into the group of every earlier one that it is similar to."""
    own = shingles(texts[i])
    for other in earlier:
        first, second = sorted((_top(leader, other), _top(leader, i)))
        if first != second and similarity(own, shingles(texts[other])) >= threshold:
            leader[second] = first


def _top(leader: dict[int, int], i: int) -> int:
    while i in leader:
        i = leader[i]
    return i
