"""What is generated, as messages: whole, or to a stream at the pace of its reader."""

import asyncio
from functools import partial

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse_server.errors import OverloadedError
from enginehouse_server.repository import Entry
from enginehouse_server.tasks import Generation

from .call import Context
from .convert_generate import stream_message, whole_message

__all__ = ["whole_answer", "write_pieces"]

_RETRY_AFTER_S = 1.0


async def whole_answer(entry: Entry, generation: Generation) -> pb.GenerateResponse:
    """The answer, when every sequence has ended.

    Raises:
        EnginehouseError: The request failed.
    """
    news = await generation.whole()
    if news.prompt_logprobs or any(piece.logprobs for piece in news.pieces):
        return await generation.aside(partial(whole_message, entry, news))  # it may be long
    return whole_message(entry, news)


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
        if news.prompt_logprobs:
            message = await generation.aside(partial(stream_message, entry, news))
        else:
            message = stream_message(entry, news)
        try:
            async with asyncio.timeout(stall_timeout_s):
                await context.write(message)
        except TimeoutError:
            raise OverloadedError(
                f"the stream was not read for {stall_timeout_s:g} s and was ended: read it as it "
                "comes, or call Generate; the server's limit is --stream-stall-timeout-s",
                _RETRY_AFTER_S,
            ) from None
