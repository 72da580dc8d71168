"""Tokenizes off the event loop: one thread, fed through a queue, that calls back when done."""

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from .tokenizer import Encoding, TextInput, Tokenizer

__all__ = ["TokenizeJob", "TokenizerThread"]

OnTokenized = Callable[[int, list[Encoding] | Exception], None]


class TokenizeJob(NamedTuple):
    """The texts of one request."""

    request_id: int
    inputs: Sequence[TextInput]
    truncate: bool


class TokenizerThread:
    """A tokenizer on a thread of its own. The tokenizer releases the GIL while it works."""

    def __init__(self, tokenizer: Tokenizer, on_tokenized: OnTokenized) -> None:
        """Starts the thread.

        Args:
            tokenizer: What tokenizes.
            on_tokenized: Called on the thread with the id of each request and its encodings, in
                the order of the inputs, or the exception that tokenizing them raised.
        """
        self._tokenizer, self._on_tokenized = tokenizer, on_tokenized
        self._jobs: SimpleQueue[TokenizeJob | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tokenizer", daemon=True)
        self._thread.start()

    def submit(self, job: TokenizeJob) -> None:
        """Hands in the texts of a request."""
        self._jobs.put(job)

    def close(self) -> None:
        """Finishes what was handed in and stops the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            found: list[Encoding] | Exception
            try:
                found = self._tokenizer.encode(job.inputs, truncate=job.truncate)
            except Exception as error:  # the fault of one request must not end the thread
                found = error
            self._on_tokenized(job.request_id, found)
