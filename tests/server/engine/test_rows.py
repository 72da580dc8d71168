from hypothesis import given
from hypothesis import strategies as st

from enginehouse_server.engine.rows import SlotRows

NUM_SLOTS = 6
Steps = st.lists(st.lists(st.integers(0, NUM_SLOTS - 1), min_size=1, unique=True), max_size=12)


class Memory:
    """What each row holds, here the number of the slot that it belongs to."""

    def __init__(self) -> None:
        self.rows = list(range(NUM_SLOTS))
        self.num_swaps = 0
        self.where = SlotRows(NUM_SLOTS, self.swap)

    def swap(self, one: int, other: int) -> None:
        self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
        self.num_swaps += 1


@given(Steps)
def test_slots_of_a_step_are_the_first_rows_and_keep_what_they_hold(
    steps: list[list[int]],
) -> None:
    memory = Memory()
    for slots in steps:
        rows = memory.where.gather(slots)
        assert sorted(rows) == list(range(len(slots)))
        assert [memory.rows[row] for row in rows] == slots
        for slot in range(NUM_SLOTS):
            assert memory.rows[memory.where.row_of(slot)] == slot


def test_one_more_and_one_less_cost_a_swap_at_most() -> None:
    memory = Memory()
    for slots, swaps in (
        ([0, 1, 2], 0),
        ([2, 0, 1], 0),
        ([0, 1, 2, 5], 1),
        ([0, 1, 2, 5], 1),
        ([1, 2, 5], 2),
        ([5, 2, 1, 3], 3),
    ):
        memory.where.gather(slots)
        assert memory.num_swaps == swaps
