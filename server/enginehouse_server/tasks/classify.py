"""Classify: texts to tokens to logits to labels, for one model version.

A request passes three threads: the event loop, where it is checked and where its answer is put
together; the tokenizer's; and a lane's, where its inputs are computed, perhaps in several batches.
Only plain data passes between them, by the number of the request.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic

import numpy as np

from enginehouse_server.errors import DeviceLostError, InvalidRequestError, OverloadedError
from enginehouse_server.scheduler import Completion, EncoderScheduler, EncoderWork
from enginehouse_server.scheduler.encoder import Deliver
from enginehouse_server.telemetry.base import ModelTelemetry
from enginehouse_server.text import Encoding, TextInput, TokenizeJob, Tokenizer, TokenizerThread

from .scores import Activation, Scored, best_labels, scores

__all__ = ["Classifier", "ClassifierTraits", "ClassifyReply", "ClassifyRequest", "InputResult"]

_TOKENIZER_FULL_RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class ClassifierTraits:
    """What a classifier is, and what one request may ask of it.

    Attributes:
        labels: Names by index.
        activation: How logits become scores unless a request says otherwise.
        accepts_pairs: Whether inputs may have two texts.
        max_tokens: Longest input.
        max_inputs: Most inputs of a request.
        max_queue: Most inputs that wait.
    """

    labels: tuple[str, ...]
    activation: Activation
    accepts_pairs: bool
    max_tokens: int
    max_inputs: int
    max_queue: int


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """Texts to classify. Times are seconds of the monotonic clock.

    Attributes:
        inputs: The texts.
        arrived_at: When the request came in.
        deadline: When an answer is of no use any more.
        priority: Among waiting requests the higher runs first.
        top_k: How many labels to return; None for all.
        activation: None for the model's own.
        truncate: Cut what is too long instead of failing.
    """

    inputs: Sequence[TextInput]
    arrived_at: float
    deadline: float = float("inf")
    priority: int = 0
    top_k: int | None = None
    activation: Activation | None = None
    truncate: bool = False


@dataclass(frozen=True, slots=True)
class InputResult:
    """What was found for one input; the times are seconds."""

    labels: Sequence[Scored]
    num_tokens: int
    truncated: bool
    tokenize_s: float
    queue_s: float
    compute_s: float
    total_s: float
    batch_size: int
    padding_fraction: float


ClassifyReply = list[InputResult]


@dataclass(slots=True)
class _InFlight:
    request: ClassifyRequest
    answer: "asyncio.Future[ClassifyReply]"
    num_missing: int
    completions: list[Completion | None]
    encodings: list[Encoding] = field(default_factory=list)


class Classifier:
    """Answers Classify requests by one engine. Used from one event loop.

    Attributes:
        traits: What it is.
        telemetry: Where its figures go.
    """

    def __init__(
        self,
        traits: ClassifierTraits,
        tokenizer: Tokenizer,
        create_scheduler: Callable[[Deliver], EncoderScheduler],
        telemetry: ModelTelemetry,
    ) -> None:
        """Starts the threads; must be called on the event loop that will use it."""
        self.traits, self.telemetry = traits, telemetry
        self._loop = asyncio.get_running_loop()
        self._ids = count(1)
        self._in_flight: dict[int, _InFlight] = {}
        self._scheduler = create_scheduler(self._on_completed)
        self._tokenizing = TokenizerThread(
            tokenizer, self._on_tokenized, self._in_flight.__contains__
        )
        telemetry.watch_queue(
            lambda: self._scheduler.num_waiting, lambda: self._scheduler.num_waiting_tokens
        )

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """Classifies the inputs of a request; cancelling the call drops what still waits.

        Returns:
            A result for each input, in order.

        Raises:
            InvalidRequestError: An input is empty, too long, or a pair where none is taken.
            OverloadedError: Too much waits already.
            DeadlineError: The deadline passed before the inputs' turn.
            DeviceError: The engine failed.
            NotReadyError: The model is being stopped.
        """
        self._check(request)
        self._check_room(request)
        request_id, num_inputs = next(self._ids), len(request.inputs)
        answer: asyncio.Future[ClassifyReply] = self._loop.create_future()
        entry = _InFlight(request, answer, num_inputs, [None] * num_inputs)
        self._in_flight[request_id] = entry
        self._tokenizing.submit(
            TokenizeJob(request_id, request.inputs, request.truncate, request.deadline)
        )
        try:
            return await answer
        finally:
            del self._in_flight[request_id]
            if entry.num_missing:
                self._scheduler.cancel([request_id])

    @property
    def computing_since(self) -> float | None:
        """When the engine began with what it computes now; None if it is idle."""
        return self._scheduler.computing_since

    def abandon(self, error: DeviceLostError) -> None:
        """Ends every request with the error, without waiting for the engine; takes no more."""
        self._scheduler.abandon(error)

    async def close(self, timeout_s: float) -> None:
        """Stops the threads; what waits for the engine already has `timeout_s` to finish."""
        await asyncio.to_thread(self._tokenizing.close)
        await asyncio.to_thread(self._scheduler.close, timeout_s)

    def _check(self, request: ClassifyRequest) -> None:
        traits, inputs = self.traits, request.inputs
        if not inputs:
            raise InvalidRequestError("inputs is empty; give at least one text", "inputs")
        if len(inputs) > traits.max_inputs:
            raise InvalidRequestError(
                f"inputs has {len(inputs)} texts; one request takes at most {traits.max_inputs}: "
                "split it, or use ClassifyStream",
                "inputs",
            )
        if request.top_k is not None and request.top_k < 1:
            raise InvalidRequestError(f"top_k is {request.top_k}; it must be at least 1", "top_k")
        for i, source in enumerate(inputs):
            if not source.text:
                raise InvalidRequestError(f"inputs[{i}].text is empty", f"inputs[{i}].text")
            if source.text_pair is None:
                continue
            where = f"inputs[{i}].text_pair"
            if not traits.accepts_pairs:
                raise InvalidRequestError(f"{where} is set, but this model takes no pairs", where)
            if not source.text_pair:
                raise InvalidRequestError(f"{where} is empty; leave it out instead", where)

    def _check_room(self, request: ClassifyRequest) -> None:
        """Raises OverloadedError before any work is put into a request that would be refused."""
        num_pending, num_inputs = self._tokenizing.num_pending, len(request.inputs)
        limit = self.traits.max_queue
        if num_pending and num_pending + num_inputs > limit:
            raise OverloadedError(
                f"{num_pending} inputs wait for their tokens and {num_inputs} more would exceed "
                f"the queue's limit of {limit}: try again later, or raise --max-queue",
                _TOKENIZER_FULL_RETRY_S,
            )
        # What waits for its tokens will be in the scheduler's queue before this request is.
        self._scheduler.check_room(num_pending + num_inputs, request.priority, request.deadline)

    def _on_tokenized(self, request_id: int, found: list[Encoding] | Exception) -> None:
        """On the tokenizer's thread: passes the tokens on to the scheduler."""
        entry = self._in_flight.get(request_id)
        if entry is None:  # cancelled meanwhile
            return
        try:
            if isinstance(found, Exception):
                raise found
            self._check_lengths(found)
            entry.encodings = found
            request = entry.request
            self._scheduler.submit(
                [
                    EncoderWork(
                        request_id, i, e.ids, e.type_ids, request.priority, request.deadline
                    )
                    for i, e in enumerate(found)
                ]
            )
        except Exception as error:  # # the caller is told, whatever it is
            self._loop.call_soon_threadsafe(self._fail, request_id, error)
            return
        if request_id not in self._in_flight:  # cancelled while it was being submitted
            self._scheduler.cancel([request_id])

    def _check_lengths(self, encodings: Sequence[Encoding]) -> None:
        limit = self.traits.max_tokens
        for i, encoding in enumerate(encodings):
            if len(encoding.ids) > limit:
                raise InvalidRequestError(
                    f"inputs[{i}] has {len(encoding.ids)} tokens; the model takes at most {limit}: "
                    "shorten it, or set truncate",
                    f"inputs[{i}]",
                )
            if not encoding.ids:
                raise InvalidRequestError(
                    f"inputs[{i}].text has no tokens after tokenization", f"inputs[{i}].text"
                )

    def _on_completed(self, completions: Sequence[Completion]) -> None:
        """On a lane's thread: one wake-up of the event loop for a whole batch."""
        self._loop.call_soon_threadsafe(self._collect, completions)

    def _collect(self, completions: Sequence[Completion]) -> None:
        for done in completions:
            entry = self._in_flight.get(done.request_id)
            if entry is None:
                continue
            if done.error is not None:
                self._fail(done.request_id, done.error)
                continue
            entry.completions[done.position] = done
            entry.num_missing -= 1
            if not entry.num_missing and not entry.answer.done():
                entry.answer.set_result(self._results(entry))

    def _fail(self, request_id: int, error: Exception) -> None:
        entry = self._in_flight.get(request_id)
        if entry is not None and not entry.answer.done():
            entry.answer.set_exception(error)

    def _results(self, entry: _InFlight) -> list[InputResult]:
        request = entry.request
        done = [c for c in entry.completions if c is not None]
        logits = np.stack([c.logits for c in done if c.logits is not None])
        values = scores(logits, request.activation or self.traits.activation)
        now = monotonic()
        results = []
        for c, row, encoding in zip(done, values, entry.encodings, strict=True):
            spans = c.queued_at - request.arrived_at, c.started_at - c.queued_at
            compute_s = c.ended_at - c.started_at
            self.telemetry.input_ended(*spans, compute_s)
            results.append(
                InputResult(
                    labels=best_labels(row, request.top_k),
                    num_tokens=len(encoding.ids),
                    truncated=encoding.full_length > len(encoding.ids),
                    tokenize_s=spans[0],
                    queue_s=spans[1],
                    compute_s=compute_s,
                    total_s=now - request.arrived_at,
                    batch_size=c.batch_size,
                    padding_fraction=c.padding_fraction,
                )
            )
        return results
