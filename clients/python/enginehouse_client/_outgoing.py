"""The requests of a synchronous stream, as gRPC's thread takes them."""

import threading
from collections.abc import Iterable, Iterator

from enginehouse.v1.inference_service_pb2 import ClassifyStreamRequest

from ._convert import request_to_pb
from .messages import ClassifyRequest

__all__ = ["Outgoing"]


class Outgoing(Iterator[ClassifyStreamRequest]):
    """Takes requests from the caller's iterable, no more of them unanswered than `max_in_flight`.

    Attributes:
        failure: What the caller's iterable, or a request that cannot be sent, raised: gRPC breaks
            the stream with a status of its own, which says nothing of it.
    """

    def __init__(self, requests: Iterable[tuple[str, ClassifyRequest]], max_in_flight: int) -> None:
        self.failure: Exception | None = None
        self._requests = iter(requests)
        self._slots = threading.Semaphore(max_in_flight)
        self._is_stopped = False

    def __next__(self) -> ClassifyStreamRequest:
        """The next request; waits for a slot."""
        self._slots.acquire()
        if self._is_stopped:
            raise StopIteration
        try:
            request_id, request = next(self._requests)
            return ClassifyStreamRequest(id=request_id, request=request_to_pb(request))
        except StopIteration:
            raise
        except Exception as failure:
            self.failure = failure
            raise

    def answered(self) -> None:
        """A request was answered."""
        self._slots.release()

    def stop(self) -> None:
        """No more requests; wakes the thread that waits for a slot."""
        self._is_stopped = True
        self._slots.release()
