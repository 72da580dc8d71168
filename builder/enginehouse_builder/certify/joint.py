"""Runs an engine as a server does: sequences join while others run, in steps of all that is due.

Each step has a token of every running sequence and a piece of one prompt, of another size every
time. A twin shares the blocks of another sequence's prompt. What comes out must be what each
sequence gets alone. Where an engine's steps do not mix, pieces and tokens take turns.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from enginehouse_builder.errors import BuildError
from enginehouse_server.engine.decoder import DecoderEngine, StepItem

__all__ = ["Work", "run_jointly", "shareable_tokens"]

_PIECES = (16, 33, 64, 128, 7, 256)  # tokens of a prompt in a step, in turn
_MAX_RUNNING = 12
_JOIN_EVERY = 2  # steps


class Work(NamedTuple):
    """A sequence to run.

    Attributes:
        prompt: Token ids.
        num_new: Greedy tokens to add.
        twin_of: Index of an earlier one with the same prompt, whose blocks it begins with.
    """

    prompt: Sequence[int]
    num_new: int
    twin_of: int | None = None


@dataclass(slots=True, eq=False)
class _Running:
    index: int
    work: Work
    blocks: list[int]
    num_cached: int = 0
    tokens: list[int] = field(default_factory=list)

    @property
    def is_reading(self) -> bool:
        """Whether some of its prompt is still to be computed."""
        return self.num_cached < len(self.work.prompt)


def shareable_tokens(engine: DecoderEngine, num_prompt: int) -> int:
    """How much of a prompt's cache a twin can begin with: one token must be left to compute."""
    limits = engine.limits
    if not limits.shares_blocks:
        return num_prompt - 1
    return (num_prompt - 1) // limits.block_size * limits.block_size


def run_jointly(engine: DecoderEngine, works: Sequence[Work]) -> list[list[int]]:
    """The greedy tokens of each sequence, in order.

    Raises:
        BuildError: A sequence does not fit into the engine's cache.
        DeviceError: The runtime failed.
    """
    return _Run(engine, works).run()


class _Run:
    def __init__(self, engine: DecoderEngine, works: Sequence[Work]) -> None:
        self._engine = engine
        self._limits = engine.limits
        self._works = works
        # A twin comes right after its donor, whose blocks are kept for it.
        order = sorted(range(len(works)), key=lambda i: (self._donor_of(i), i))
        self._waiting = deque(order)
        self._running: list[_Running] = []
        self._seen: dict[int, _Running] = {}
        self._free = list(reversed(range(engine.limits.num_blocks)))
        self._users: Counter[int] = Counter()  # of each block
        self._step = 0

    def _donor_of(self, index: int) -> int:
        donor = self._works[index].twin_of
        return index if donor is None else donor

    def run(self) -> list[list[int]]:
        while self._waiting or self._running:
            if self._step % _JOIN_EVERY == 0 or not self._running:
                self._admit()
            chosen = self._choose()
            self._engine.start([item for _, item in chosen])
            self._take(chosen)
            self._step += 1
        return [self._seen[i].tokens for i in range(len(self._works))]

    def _admit(self) -> None:
        if not self._waiting or len(self._running) >= min(_MAX_RUNNING, self._limits.max_sequences):
            return
        index = self._waiting[0]
        work = self._works[index]
        donor = None if work.twin_of is None else self._seen[work.twin_of]
        shared = 0 if donor is None else shareable_tokens(self._engine, len(work.prompt))
        if donor is not None and donor.num_cached < shared:
            return
        is_whole = self._limits.shares_blocks
        common = donor.blocks[: self._num_shared(donor)] if donor and is_whole else []
        needed = -(-(len(work.prompt) + work.num_new) // self._limits.block_size) - len(common)
        if needed > len(self._free):
            if not self._running:
                raise BuildError(
                    f"a sequence of {len(work.prompt) + work.num_new} tokens needs {needed} blocks "
                    f"of cache, and the engine has {len(self._free)}"
                )
            return
        self._waiting.popleft()
        blocks = common + [self._free.pop() for _ in range(needed)]
        if donor is not None and not is_whole:
            self._engine.copy_block(donor.blocks[0], blocks[0])
        self._users.update(blocks)
        sequence = _Running(index, work, blocks, shared)
        self._running.append(sequence)
        self._seen[index] = sequence

    def _choose(self) -> list[tuple[_Running, StepItem]]:
        """What the next step computes; the piece of a prompt comes first in every other step."""
        reading = [s for s in self._running if s.is_reading][:1]
        writing = [s for s in self._running if not s.is_reading]
        if reading and writing and not self._limits.mixes:
            reading, writing = (reading, []) if self._step % 2 else ([], writing)
        room = self._limits.max_step_tokens
        if len(writing) >= room:
            reading, writing = [], writing[self._step % len(writing) :][:room]
        room -= len(writing)
        tokens = [(s, StepItem(s.blocks, s.num_cached, s.tokens[-1:])) for s in writing]
        pieces = [(s, self._piece(s, room)) for s in reading]
        return pieces + tokens if self._step % 2 else tokens + pieces

    def _piece(self, sequence: _Running, room: int) -> StepItem:
        size = min(_PIECES[self._step % len(_PIECES)], room)
        tokens = sequence.work.prompt[sequence.num_cached :][:size]
        is_last = sequence.num_cached + len(tokens) == len(sequence.work.prompt)
        return StepItem(sequence.blocks, sequence.num_cached, tokens, int(is_last))

    def _take(self, chosen: Sequence[tuple[_Running, StepItem]]) -> None:
        best = iter(self._engine.wait().argmax(axis=1).tolist())
        for sequence, item in chosen:
            sequence.num_cached += len(item.tokens)
            if item.num_logits:
                sequence.tokens.append(next(best))
            if len(sequence.tokens) == sequence.work.num_new:
                self._running.remove(sequence)
        self._release()

    def _release(self) -> None:
        """Frees the blocks of ended sequences, but for those that a twin is still to share."""
        needed = {self._works[i].twin_of for i in self._waiting}
        for sequence in self._seen.values():
            if sequence in self._running:
                continue
            kept = self._num_shared(sequence) if sequence.index in needed else 0
            ended, sequence.blocks = sequence.blocks[kept:], sequence.blocks[:kept]
            self._users.subtract(ended)
            self._free += [block for block in ended if not self._users[block]]

    def _num_shared(self, donor: _Running) -> int:
        """Blocks of its own that a twin begins with."""
        if not self._limits.shares_blocks:
            return len(donor.blocks)
        shared = shareable_tokens(self._engine, len(donor.work.prompt))
        return shared // self._limits.block_size
