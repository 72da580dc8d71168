"""What is generated, as messages: whole, or to a stream at the pace of its reader."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_server.errors import OverloadedError
from enginehouse_server.repository import Entry
from enginehouse_server.tasks import Generation, News

from .call import Context
from .convert_generate import stream_message, whole_message

__all__ = ["whole_answer", "write_pieces"]

_RETRY_AFTER_S = 1.0
_MANY_SCORED = 256  # log-probabilities: a message of more takes longer than its way to a thread

_MessageT = TypeVar("_MessageT", pb.GenerateResponse, pb.GenerateStreamResponse)


async def whole_answer(entry: Entry, generation: Generation) -> pb.GenerateResponse:
    """The answer, when every sequence has ended.

    Raises:
        EnginehouseError: The request failed.
    """
    return await _message(whole_message, entry, generation, await generation.whole())


async def write_pieces(
    context: Context, entry: Entry, generation: Generation, stall_timeout_s: float
) -> None:
    """Writes a message for each step, or for several that came while one was being written.

    A reader that is behind makes nobody else wait and costs no more than its whole answer: what it
    has not read is one piece for each sequence.

    Raises:
        OverloadedError: The reader took nothing for `stall_timeout_s`.
        EnginehouseError: The request failed.
    """
    while (news := await generation.next()) is not None:
        message = await _message(stream_message, entry, generation, news)
        try:
            async with asyncio.timeout(stall_timeout_s):
                await context.write(message)
        except TimeoutError:
            raise OverloadedError(
                f"the stream was not read for {stall_timeout_s:g} s and was ended: read it as it "
                "comes, or call Generate; the server's limit is --stream-stall-timeout-s",
                _RETRY_AFTER_S,
            ) from None


async def _message(
    convert: Callable[[Entry, News], _MessageT], entry: Entry, generation: Generation, news: News
) -> _MessageT:
    """Made at once, or off the event loop if it is long: others wait for their steps there."""
    if news.num_scored > _MANY_SCORED:
        return await generation.aside(partial(convert, entry, news))
    return convert(entry, news)
