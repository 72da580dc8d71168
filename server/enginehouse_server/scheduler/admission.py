"""Whether a request may wait for a decoder. Knows no threads and no clock."""

from enginehouse_server.engine.decoder import DecoderLimits
from enginehouse_server.errors import InvalidRequestError, OverloadedError

from .generate_policy import GeneratePolicy
from .generate_work import GenerateWork

__all__ = ["GenerateAdmission"]

_MEMORY = 0.95  # what a sequence that ends leaves of the weight of those before it


class GenerateAdmission:
    """The bounds on what waits, and the pace at which sequences come to their end."""

    def __init__(self, limits: DecoderLimits, policy: GeneratePolicy) -> None:
        self._limits, self._policy = limits, policy
        # As decaying sums. One that has not ended yet keeps the first from dividing by nothing.
        self._busy_s, self._num_ended = 0.0, 1.0

    def check_possible(self, work: GenerateWork) -> None:
        """Raises InvalidRequestError if a sequence could not end even alone."""
        limits, num_prompt = self._limits, len(work.prompt)
        num_tokens = num_prompt + work.max_new_tokens
        asked = f"a prompt of {num_prompt} tokens and {work.max_new_tokens} new ones"
        remedy = "shorten the prompt or lower stopping.max_new_tokens"
        if num_tokens > limits.max_tokens:
            raise InvalidRequestError(
                f"{asked} are {num_tokens}, the model takes {limits.max_tokens}; {remedy}",
                "stopping.max_new_tokens",
            )
        capacity = limits.num_blocks * limits.block_size
        if num_tokens - 1 > capacity:  # the last one is never looked back on
            raise InvalidRequestError(
                f"{asked} are {num_tokens}, the cache holds {capacity}; {remedy}, "
                "or give the server more cache memory",
                "stopping.max_new_tokens",
            )

    def check_room(
        self, num_new: int, time_left_s: float, num_waiting: int, num_ahead: int, num_places: int
    ) -> None:
        """Raises OverloadedError if a request would not be admitted.

        An empty queue takes any request: one larger than the bound would else never be served.

        Args:
            num_new: Its sequences.
            time_left_s: Until its deadline.
            num_waiting: Sequences that wait.
            num_ahead: How many of them would run before it.
            num_places: How many sequences could begin at once.
        """
        if not num_waiting:
            return
        policy = self._policy
        wait_s = max(0, num_ahead + 1 - num_places) * self._busy_s / self._num_ended
        if num_waiting + num_new > policy.max_queue:
            limit = f"{num_new} more would exceed the queue's limit of {policy.max_queue}"
            raise OverloadedError(f"{num_waiting} sequences wait and {limit}", wait_s)
        limit_s = min(policy.max_queue_s, time_left_s)
        if wait_s > limit_s:
            name = "limit" if limit_s == policy.max_queue_s else "time left to the deadline"
            figures = f"about {wait_s:.2f} s, longer than the {name} of {limit_s:.2f} s"
            message = f"{num_waiting} sequences wait, for {figures}"
            raise OverloadedError(message, wait_s - limit_s)

    def observe(self, seconds: float, num_ended: int) -> None:
        """Learns the pace: what a step took, and how many have left their place since the last.

        Whatever the reason for which they left: others can begin.
        """
        self._busy_s += seconds
        if num_ended:
            weight = _MEMORY**num_ended
            self._busy_s *= weight
            self._num_ended = self._num_ended * weight + num_ended
