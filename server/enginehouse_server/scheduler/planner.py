"""Plans what a decoder computes in its next step. Knows no threads and no clock.

Sequences run in order of service: by priority, then arrival. Whoever waits first begins first, as
soon as there are blocks for all its tokens; one that decodes gets a block at a time. When blocks
run out, the last in order of those running loses its place and waits again, with what it has
generated as a part of its prompt. The first in order never does, so something always ends: a
sequence that could not end even alone is refused before.

What is left of a step beside the decodes goes to prompts: half of it to the first in order, which
therefore always comes to its end, the rest to those with the fewest tokens to go, which must not
wait for a long one.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from enginehouse_server.engine.decoder import DecoderLimits, StepItem

from .blocks import BlockPool, Taken
from .generate_policy import GeneratePolicy
from .sequence import Sequence as Generation
from .slots import SlotPool

__all__ = ["Part", "Planner", "Step"]

_MAX_LOOK = 32  # waiting sequences that are looked at beyond those that begin
_MAX_SCORED = 64  # tokens of prompts whose logits a step may want: they are much memory
_in_order = attrgetter("order")


class Part(NamedTuple):
    """What a step computes of one sequence: its next tokens.

    Attributes:
        sequence: Whose.
        num_tokens: How many.
        num_logits: For how many of the last of them logits are wanted.
        is_last: Whether none is pending then, so that a next one can be chosen.
    """

    sequence: Generation
    num_tokens: int
    num_logits: int
    is_last: bool


class Step(NamedTuple):
    """What to compute next.

    Attributes:
        parts: In the order of the engine's items.
        copies: Blocks (source, target) to copy before the step starts.
        cleared: Blocks to clear before that.
        num_reused_tokens: Found in the cache by sequences that begin with this step.
        num_repeated_tokens: That they have to compute once more.
        num_preemptions: Sequences that lost their place since the last step.
    """

    parts: Sequence[Part]
    copies: Sequence[tuple[int, int]]
    cleared: Sequence[int]
    num_reused_tokens: int
    num_repeated_tokens: int
    num_preemptions: int

    @property
    def items(self) -> list[StepItem]:
        """The parts as the engine takes them."""
        return [part.sequence.item(part.num_tokens, part.num_logits) for part in self.parts]


class Planner:
    """Sequences that wait and run, and the blocks that they have.

    Attributes:
        waiting: In order of service; those that were preempted among them.
        running: In order of service.
    """

    def __init__(
        self,
        limits: DecoderLimits,
        policy: GeneratePolicy,
        prompt_tokens_beside: Callable[[int, int], int],
    ) -> None:
        """Starts with nothing.

        Args:
            limits: What the engine allows.
            policy: Bounds.
            prompt_tokens_beside: Most tokens of prompts in a step, or between two, for so many
                running sequences that wait for it and so many whose prompts they are, at least one
                of each; asked for each step.

        Raises:
            ValueError: The engine neither shares blocks nor has one a sequence.
        """
        if not limits.shares_blocks and limits.block_size < limits.max_tokens:
            raise ValueError("an engine that cannot share blocks must have one block a sequence")
        self._limits, self._policy = limits, policy
        self._prompt_tokens_beside = prompt_tokens_beside
        self.waiting: list[Generation] = []
        self.running: list[Generation] = []
        self._pool: BlockPool | SlotPool = (
            BlockPool(limits.num_blocks, limits.block_size)
            if limits.shares_blocks
            else SlotPool(limits.num_blocks, limits.max_tokens)
        )
        self._max_running = min(limits.max_sequences, limits.max_step_tokens, limits.num_blocks)
        self._prefilling: dict[bytes, Generation] = {}  # who computes a page that is not there yet
        self._copies: list[tuple[int, int]] = []
        self._cleared: list[int] = []
        self._num_reused = self._num_repeated = self._num_preemptions = 0
        self._num_chunks = 0  # of prompts, in an engine that does not mix
        self._was_chunk = False

    @property
    def page_size(self) -> int:
        """Tokens of what is compared to find a shared prefix."""
        return self._pool.page_size

    @property
    def num_live(self) -> int:
        """Sequences that wait or run."""
        return len(self.waiting) + len(self.running)

    @property
    def num_blocks_used(self) -> int:
        """Blocks that sequences have."""
        return self._pool.num_blocks - self._pool.num_free

    @property
    def num_places(self) -> int:
        """Sequences that could begin at once; 0 while others wait for blocks."""
        return 0 if self.waiting else self._max_running - len(self.running)

    def add(self, sequence: Generation) -> None:
        """Lets a sequence wait."""
        sequence.reusable_names()  # costs time now, which is plenty, and not in `plan`
        insort(self.waiting, sequence, key=_in_order)

    def remove(self, sequence: Generation) -> None:
        """Drops a sequence that waits or runs; not while a plan is made."""
        if sequence.is_running:
            _drop(self.running, sequence)
            self._stop_prefilling(sequence)
            self._pool.release(sequence.leave())
        else:
            _drop(self.waiting, sequence)

    def discard(self, sequence: Generation) -> None:
        """Sees that nothing of what was computed of a sequence that runs is used again.

        Before it is removed. What it has in common with others that run they find out themselves.
        """
        self._cleared += self._pool.forget(sequence.blocks)

    def plan(self) -> Step | None:
        """The next step; None if nothing can be computed. Each step must be `complete`d."""
        decodes = [s for s in self.running if s.num_pending == 1]
        self._grow(decodes)
        self._admit()
        # Who begins with all but one token from the cache decodes at once.
        decodes = [s for s in self.running if s.num_pending == 1]
        prompts = [s for s in self.running if s.num_pending > 1]
        if self._limits.mixes:
            parts = [Part(s, 1, 1, True) for s in decodes]
            if prompts:
                parts += self._share(prompts, self._prompt_budget(len(decodes), len(prompts)))
        else:
            parts = self._alternate(decodes, prompts)
        if not parts:
            return None
        step = Step(
            parts,
            self._copies,
            self._cleared,
            self._num_reused,
            self._num_repeated,
            self._num_preemptions,
        )
        self._copies, self._cleared = [], []
        self._num_reused = self._num_repeated = self._num_preemptions = 0
        return step

    def complete(self, step: Step) -> None:
        """Notes that the engine has computed a step."""
        for sequence, num_tokens, _, _ in step.parts:
            if not sequence.is_running:  # removed meanwhile
                continue
            sequence.num_cached += num_tokens
            sequence.num_computed += num_tokens
            if sequence.num_cached // self.page_size > sequence.num_published:
                self._publish(sequence)

    def check_integrity(self) -> None:
        """Raises AssertionError if a block is lost or noted otherwise than it is used."""
        self._pool.check_integrity([s.blocks for s in self.running])
        assert all(not s.blocks for s in self.waiting), "who waits has blocks"
        assert all(s.is_running for s in self._prefilling.values()), "who computes does not run"

    def _grow(self, decodes: Iterable[Generation]) -> None:
        """Sees that each has a block for its next token; takes them from the last in order."""
        for sequence in decodes:
            while sequence.is_running and self._pool.num_needed(len(sequence.tokens)) > len(
                sequence.blocks
            ):
                if not self._pool.grow(sequence.blocks):
                    self._preempt(self.running[-1])

    def _preempt(self, sequence: Generation) -> None:
        _drop(self.running, sequence)
        self._stop_prefilling(sequence)
        self._pool.release(sequence.preempt())
        insort(self.waiting, sequence, key=_in_order)
        self._num_preemptions += 1

    def _admit(self) -> None:
        """Lets those begin that are first and for whom there are blocks."""
        num_passed = 0  # waiting sequences that are better off a little later
        while len(self.running) < self._max_running and num_passed < _MAX_LOOK:
            if num_passed >= len(self.waiting):
                return
            sequence = self.waiting[num_passed]
            names = sequence.reusable_names() if self._policy.reuses_prefixes else ()
            if self._is_being_computed(sequence, names):
                num_passed += 1
                continue
            # Who runs should be able to grow for a while before someone is preempted again.
            num_spare = len(self.running) if self._limits.shares_blocks else 0
            taken = self._pool.take(names, len(sequence.tokens), num_spare)
            if taken is None:
                return
            del self.waiting[num_passed]
            self._begin(sequence, taken)

    def _begin(self, sequence: Generation, taken: Taken) -> None:
        if taken.copy_from is not None:
            self._copies.append((taken.copy_from, taken.blocks[0]))
        self._num_repeated += sequence.begin(taken.blocks, taken.num_cached)
        self._num_reused += taken.num_cached
        insort(self.running, sequence, key=_in_order)
        for name in sequence.names.names[taken.num_cached // self.page_size :]:
            self._prefilling.setdefault(name, sequence)

    def _is_being_computed(self, sequence: Generation, names: Sequence[bytes]) -> bool:
        """Whether the first page that the cache lacks is just being computed for another."""
        num_known = self._pool.num_known(names)
        if num_known == len(names):
            return False
        other = self._prefilling.get(names[num_known])
        return other is not None and other.work.priority >= sequence.work.priority

    def _stop_prefilling(self, sequence: Generation) -> None:
        for name in sequence.names.names[sequence.num_published :]:
            if self._prefilling.get(name) is sequence:
                del self._prefilling[name]

    def _publish(self, sequence: Generation) -> None:
        names = sequence.names.extend(sequence.tokens)
        num_pages = sequence.num_cached // self.page_size
        for page in range(sequence.num_published, num_pages):
            self._pool.publish(sequence.blocks, page, names[page])
            if self._prefilling.get(names[page]) is sequence:
                del self._prefilling[names[page]]
        sequence.num_published = num_pages

    def _prompt_budget(self, num_decodes: int, num_prompts: int) -> int:
        budget = self._limits.max_step_tokens
        if not num_decodes:
            return budget
        most = self._prompt_tokens_beside(num_decodes, num_prompts)
        return min(budget - num_decodes if self._limits.mixes else budget, most)

    def _share(self, prompts: Sequence[Generation], budget: int) -> list[Part]:
        """Chunks of prompts (at least one, in order of service) that take `budget` tokens."""
        first, *others = prompts
        num_scored = _MAX_SCORED - first.is_scoring * _num_next(first, _MAX_SCORED)
        scoring = [s.num_pending for s in others if s.is_scoring]
        num_others = sum(s.num_pending for s in others if not s.is_scoring)
        num_others += min(sum(scoring), num_scored)
        chunks = [_chunk(first, max((budget + 1) // 2, budget - num_others), _MAX_SCORED)]
        num_scored = _MAX_SCORED - first.is_scoring * chunks[0].num_tokens
        budget -= chunks[0].num_tokens
        for sequence in sorted(others, key=attrgetter("num_pending", "order")):
            if not budget:
                break
            if sequence.is_scoring and not num_scored:
                continue
            chunks.append(_chunk(sequence, budget, num_scored))
            budget -= chunks[-1].num_tokens
            num_scored -= sequence.is_scoring * chunks[-1].num_tokens
        return chunks

    def _alternate(
        self, decodes: Sequence[Generation], prompts: Sequence[Generation]
    ) -> list[Part]:
        """A token of each that decodes and a chunk of a prompt, in turn."""
        if not prompts or (decodes and self._was_chunk):
            self._was_chunk = False
            return [Part(s, 1, 1, True) for s in decodes]
        self._was_chunk = True
        self._num_chunks += 1
        shortest = min(prompts, key=attrgetter("num_pending", "order"))
        sequence = prompts[0] if self._num_chunks % 2 else shortest
        budget = self._prompt_budget(len(decodes), len(prompts))
        return [_chunk(sequence, budget, _MAX_SCORED)]


def _num_next(sequence: Generation, num_scored: int) -> int:
    """Tokens that could be computed of it in a step that may score so many."""
    num_pending = sequence.num_pending
    return min(num_pending, num_scored) if sequence.is_scoring else num_pending


def _chunk(sequence: Generation, budget: int, num_scored: int) -> Part:
    num_tokens = min(_num_next(sequence, num_scored), budget)
    is_last = num_tokens == sequence.num_pending
    return Part(sequence, num_tokens, num_tokens if sequence.is_scoring else is_last, is_last)


def _drop(ordered: list[Generation], sequence: Generation) -> None:
    del ordered[bisect_left(ordered, sequence.order, key=_in_order)]
