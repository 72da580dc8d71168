"""Generate: prompts to tokens to more tokens to text, for one model version.

A request passes three threads: the event loop, where it is checked and where its text is put
together; one that tokenizes; and the scheduler's, where its sequences are computed step by step
with those of others. Only plain data passes between them, by the number of the request.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from time import monotonic
from typing import NamedTuple, TypeVar

from enginehouse_server.errors import InvalidRequestError, OverloadedError
from enginehouse_server.sampling import SamplingSettings, StructureCompiler
from enginehouse_server.scheduler import GenerateScheduler
from enginehouse_server.scheduler.generate_work import DeliverTokens, Emitted, GenerateWork
from enginehouse_server.telemetry.base import GenerateTelemetry

from .generate_checks import (
    GeneratorTraits,
    check_answer_size,
    check_prompt,
    check_request,
    room_for_answer,
)
from .generate_request import GenerateRequest, Prompt, PromptTokens
from .generation import Generation
from .prompts import PromptReader, end_tokens, sampling_settings, stop_tokens
from .sequence import SequenceAssembly

__all__ = ["Generator"]

_PREPARING_THREADS = 2  # a long prompt leaves one for the short ones
_RETRY_AFTER_S = 1.0

_ArgumentT = TypeVar("_ArgumentT")
_ResultT = TypeVar("_ResultT")


class _Prepared(NamedTuple):
    """What is made of a request off the event loop."""

    prompt: PromptTokens
    sampling: SamplingSettings


class Generator:
    """Answers Generate requests by one engine. Used from one event loop.

    Attributes:
        traits: What it is.
        telemetry: Where its figures go.
    """

    def __init__(
        self,
        traits: GeneratorTraits,
        reader: PromptReader,
        structures: StructureCompiler | None,
        create_scheduler: Callable[[DeliverTokens], GenerateScheduler],
        telemetry: GenerateTelemetry,
    ) -> None:
        """Starts the threads; must be called on the event loop that will use it."""
        self.traits, self.telemetry = traits, telemetry
        self._reader, self._structures = reader, structures
        self._loop = asyncio.get_running_loop()
        self._ids = count(1)
        self._in_flight: dict[int, Generation] = {}
        self._num_preparing = 0  # sequences whose prompts are not tokens yet, and callers like them
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="tokenizer")
        self._is_closed = False
        self._scheduler = create_scheduler(self._on_emitted)

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[Generation]:
        """Queues a request; leaving the context frees what it still has.

        Raises:
            InvalidRequestError: The request can never succeed; nothing was queued.
            OverloadedError: Too much waits already.
            NotReadyError: The model is being stopped.
        """
        check_request(request, self.traits)
        self._scheduler.check_room(_least_works(request))
        prepared = await self._run(self._prepare, request, request.sampling.num_sequences)
        works = self._works(next(self._ids), request, prepared)
        generation = self._generation(request, works, prepared.prompt)
        request_id = works[0].request_id
        self._in_flight[request_id] = generation
        try:
            self._scheduler.submit(works)
            yield generation
        finally:
            del self._in_flight[request_id]
            generation.count_unfinished()
            if not generation.has_ended:  # one that failed has others that go on
                self._scheduler.cancel(request_id)

    async def tokenize(self, prompt: Prompt) -> PromptTokens:
        """The tokens that a prompt begins with.

        Raises:
            InvalidRequestError: The prompt is empty or too long, or its chat cannot be rendered.
            OverloadedError: Too much waits already.
        """
        check_prompt(prompt, self.traits)
        return await self._run(self._reader.read, prompt)

    async def detokenize(self, token_ids: Sequence[int], *, keep_special_tokens: bool) -> str:
        """The text of tokens.

        Raises:
            InvalidRequestError: A token is unknown, or there are more than a sequence has.
            OverloadedError: Too much waits already.
        """
        limit, most = self.traits.vocab_size, self.traits.max_tokens
        if len(token_ids) > most:
            raise InvalidRequestError(
                f"token_ids has {len(token_ids)} tokens; a text of this model has at most {most}: "
                "send it in parts",
                "token_ids",
            )
        for i, token in enumerate(token_ids):
            if not 0 <= token < limit:
                raise InvalidRequestError(
                    f"token_ids[{i}] is {token}; tokens of this model are 0 to {limit - 1}",
                    f"token_ids[{i}]",
                )

        def decode(ids: Sequence[int]) -> str:
            return self._reader.vocabulary.decode(ids, keep_special_tokens=keep_special_tokens)

        return await self._run(decode, token_ids)

    async def close(self, timeout_s: float) -> None:
        """Finishes what it was given, within `timeout_s`, and stops the threads."""
        await asyncio.to_thread(self._scheduler.close, timeout_s)
        self._is_closed = True
        self._preparing.shutdown(wait=False)

    def _prepare(self, request: GenerateRequest) -> _Prepared:
        """Off the event loop: everything that a wrong request can still fail on."""
        if request.structure is not None and self._structures is not None:
            self._structures.compile(request.structure)
        return _Prepared(
            self._reader.read(request.prompt),
            sampling_settings(request, self.traits, self._reader),
        )

    def _works(
        self, request_id: int, request: GenerateRequest, prepared: _Prepared
    ) -> list[GenerateWork]:
        """The sequences of a request; only the first scores the prompt.

        Raises:
            InvalidRequestError: Prompt and answer are too long, or the answer is for its message.
        """
        ids = prepared.prompt.ids
        max_new_tokens = room_for_answer(len(ids), request, self.traits)
        if request.max_answer_bytes is not None:
            check_answer_size(len(ids), max_new_tokens, request, request.max_answer_bytes)
        return [
            GenerateWork(
                request_id=request_id,
                index=index,
                prompt=ids,
                sampling=prepared.sampling,
                max_new_tokens=max_new_tokens,
                eos_ids=end_tokens(request, self.traits),
                stop_ids=stop_tokens(request),
                structure=request.structure,
                num_prompt_logprobs=None if index else request.output.prompt_logprobs,
                priority=request.priority,
                arrived_at=request.arrived_at,
                deadline=request.deadline,
            )
            for index in range(request.sampling.num_sequences)
        ]

    def _generation(
        self, request: GenerateRequest, works: Sequence[GenerateWork], prompt: PromptTokens
    ) -> Generation:
        vocabulary = self._reader.vocabulary
        ending = works[0].eos_ids | works[0].stop_ids
        return Generation(
            prompt,
            vocabulary,
            [SequenceAssembly(w.index, request, prompt.ids, vocabulary, ending) for w in works],
            self.telemetry,
            self._aside,
            has_prompt_logprobs=request.output.prompt_logprobs is not None,
        )

    async def _run(
        self, function: Callable[[_ArgumentT], _ResultT], value: _ArgumentT, num_new: int = 1
    ) -> _ResultT:
        """Runs what takes long off the event loop; what waits for that counts as waiting."""
        num_preparing, limit = self._num_preparing, self.traits.max_waiting
        num_waiting = num_preparing + self._scheduler.num_waiting
        if num_preparing and num_waiting + num_new > limit:
            raise OverloadedError(
                f"{num_waiting} sequences wait, {num_preparing} of them for their tokens, and "
                f"{num_new} more would exceed the queue's limit of {limit}",
                _RETRY_AFTER_S,
            )
        self._num_preparing += num_new
        try:
            return await self._loop.run_in_executor(self._preparing, function, value)
        finally:
            self._num_preparing -= num_new

    async def _aside(self, function: Callable[[], _ResultT]) -> _ResultT:
        """Runs what is left to do of a request that was computed; it waits for no room."""
        if self._is_closed:
            return function()
        return await self._loop.run_in_executor(self._preparing, function)

    def _on_emitted(self, emitted: Sequence[Emitted]) -> None:
        """On the scheduler's thread: one wake-up of the event loop for a whole step."""
        self._loop.call_soon_threadsafe(self._collect, emitted)

    def _collect(self, emitted: Sequence[Emitted]) -> None:
        now = monotonic()
        for one in emitted:
            generation = self._in_flight.get(one.request_id)
            if generation is None:  # its caller has left
                continue
            try:
                if generation.accept(one, now):
                    self._scheduler.cancel(one.request_id, one.index, "stop")
            except Exception as error:  # the fault of one request must not reach the others
                generation.fail(error)


def _least_works(request: GenerateRequest) -> list[GenerateWork]:
    """What a request asks of the queue at least, while its prompt is not tokens yet."""
    work = GenerateWork(
        request_id=0,
        index=0,
        prompt=(0,),
        sampling=SamplingSettings(),
        max_new_tokens=1,
        priority=request.priority,
        deadline=request.deadline,
    )
    return [work] * request.sampling.num_sequences
