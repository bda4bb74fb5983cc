"""The page table alone."""

import random

import numpy as np
import pytest

from t3d.decoding.pages import BLANK, PageTable, num_pages


def held(table: PageTable, slot: int) -> list[int]:
    return table.rows[slot, : table.counts[slot]].tolist()


@pytest.mark.parametrize(("length", "expected"), [(0, 0), (1, 1), (8, 1), (9, 2), (2048, 256)])
def test_pages_of_a_length(length: int, expected: int) -> None:
    assert num_pages(length, 8) == expected


def test_places_follow_the_pages_and_lie_in_the_blank_one_where_there_is_none() -> None:
    table = PageTable(5, 4, num_slots=3, most=3)
    assert table.take(1, 2) == [1, 2]
    assert table.take(0, 1) == [3]
    assert table.take(1, 1) == [4]
    slots, positions = np.array([1, 1, 1, 0, 2, 0]), np.array([0, 7, 8, 3, 2, 5])
    assert table.places(slots, positions).tolist() == [4, 11, 16, 15, 2, 1]
    assert table.rows[2].tolist() == [BLANK] * 3


def test_shared_pages_are_free_when_their_last_holder_ends() -> None:
    table = PageTable(4, 4, num_slots=3, most=3)
    table.take(0, 3)
    table.share(0, 1, 2)
    table.take(1, 1)
    assert (held(table, 0), held(table, 1), table.free) == ([1, 2, 3], [1, 2, 4], [])
    table.release(0)
    assert table.free == [3]
    table.move(1, 0)
    assert (held(table, 0), held(table, 1)) == ([1, 2, 4], [])
    table.release(0)
    assert sorted(table.free) == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(20))
def test_no_page_is_used_twice_and_all_are_returned(seed: int) -> None:
    """Sequences come, share, grow, move and go at random; a second account is kept by hand."""
    chooser, number = random.Random(seed), 40
    table, owned = PageTable(number, 4, num_slots=6, most=8), dict[int, list[int]]()
    for _ in range(300):
        slot, act = chooser.randrange(6), chooser.random()
        if slot not in owned:
            owned[slot] = []
            source = chooser.choice(list(owned))
            if act < 0.5 and source != slot:
                shared = chooser.randint(0, len(owned[source]))
                table.share(source, slot, shared)
                owned[slot] = owned[source][:shared]
        elif act < 0.6:
            taken = table.take(slot, min(chooser.randint(0, 2), len(table.free), 8 - len(owned[slot])))
            assert not {page for pages in owned.values() for page in pages} & set(taken), "nobody else's"
            owned[slot] += taken
        elif act < 0.8:
            table.release(slot)
            del owned[slot]
        elif free := [other for other in range(6) if other not in owned]:
            table.move(slot, free[0])
            owned[free[0]] = owned.pop(slot)
        used = [page for pages in owned.values() for page in pages]
        assert {slot: held(table, slot) for slot in owned} == owned
        assert sorted(table.free) == sorted(set(range(1, number + 1)) - set(used))
        assert [int(table.holders[page]) for page in range(number + 1)] == [used.count(p) for p in range(number + 1)]
        assert BLANK not in used
    for slot in owned:
        table.release(slot)
    assert sorted(table.free) == list(range(1, number + 1))
    assert not table.rows.any()
    assert not table.holders.any()
