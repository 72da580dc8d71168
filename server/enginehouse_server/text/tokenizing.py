"""Tokenizes off the event loop: one thread, fed through a queue, that calls back when done."""

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from time import monotonic
from typing import NamedTuple

from enginehouse_server.errors import DeadlineError, NotReadyError

from .tokenizer import Encoding, TextInput, Tokenizer

__all__ = ["TokenizeJob", "TokenizerThread"]

OnTokenized = Callable[[int, list[Encoding] | Exception], None]


class TokenizeJob(NamedTuple):
    """The texts of one request; after `deadline`, of the monotonic clock, they are left alone."""

    request_id: int
    inputs: Sequence[TextInput]
    truncate: bool
    deadline: float = float("inf")


class TokenizerThread:
    """A tokenizer on a thread of its own. The tokenizer releases the GIL while it works."""

    def __init__(
        self, tokenizer: Tokenizer, on_tokenized: OnTokenized, is_wanted: Callable[[int], bool]
    ) -> None:
        """Starts the thread.

        Args:
            tokenizer: What tokenizes.
            on_tokenized: Called on the thread with the id of each request and its encodings, in
                the order of the inputs, or the exception that it ends with instead.
            is_wanted: Called on the thread when a request's turn comes; one that nobody wants any
                more is dropped without a word.
        """
        self._tokenizer, self._on_tokenized, self._is_wanted = tokenizer, on_tokenized, is_wanted
        self._jobs: SimpleQueue[TokenizeJob | None] = SimpleQueue()
        self._is_closing = False
        # Each is written by one thread alone, so neither needs a lock.
        self._num_submitted = self._num_passed_on = 0
        self._thread = threading.Thread(target=self._run, name="tokenizer", daemon=True)
        self._thread.start()

    @property
    def num_pending(self) -> int:
        """Inputs that were submitted and not yet passed on or dropped."""
        return self._num_submitted - self._num_passed_on

    def submit(self, job: TokenizeJob) -> None:
        """Hands in the texts of a request; always from the same thread."""
        self._num_submitted += len(job.inputs)
        self._jobs.put(job)

    def close(self) -> None:
        """Stops the thread; what still waits for it ends with NotReadyError."""
        self._is_closing = True
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            outcome = self._outcome(job) if self._is_wanted(job.request_id) else None
            self._num_passed_on += len(job.inputs)  # first: nobody must count them twice
            if outcome is not None:
                self._on_tokenized(job.request_id, outcome)

    def _outcome(self, job: TokenizeJob) -> list[Encoding] | Exception:
        if self._is_closing:
            return NotReadyError("the server stopped before this request's turn; try another")
        if job.deadline <= monotonic():
            return DeadlineError("the deadline passed while the request waited for its tokens")
        try:
            return self._tokenizer.encode(job.inputs, truncate=job.truncate)
        except Exception as error:  # the fault of one request must not end the thread
            return error
