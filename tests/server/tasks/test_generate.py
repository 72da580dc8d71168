"""What of a decoder's requests waits for its tokens."""

import asyncio
import threading
from typing import cast

import pytest

from enginehouse_server.errors import InvalidRequestError, OverloadedError
from enginehouse_server.scheduler import GenerateScheduler
from enginehouse_server.tasks import Generator, Prompt, PromptReader, PromptTokens
from enginehouse_server.telemetry import Metrics
from tests.server.tasks.test_generate_checks import TRAITS


class Idle:
    """A scheduler that has nothing to do."""

    num_waiting = 0

    def close(self, timeout_s: float) -> None:
        pass


class Slow:
    """A tokenizer that takes as long as a test wants."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def read(self, prompt: Prompt) -> PromptTokens:
        if prompt.text != "short":
            assert self.goes_on.wait(10)
        return PromptTokens([1], prompt.text or "")


async def test_prompts_that_wait_for_their_tokens_count_as_waiting() -> None:
    slow = Slow()
    generator = Generator(
        TRAITS,
        cast(PromptReader, slow),
        None,
        lambda _deliver: cast(GenerateScheduler, Idle()),
        Metrics().of_decoder("m", 1),
    )
    long = asyncio.create_task(generator.tokenize(Prompt(text="long")))
    await asyncio.sleep(0)
    short = await asyncio.wait_for(generator.tokenize(Prompt(text="short")), 5)  # passes the long
    assert short.ids == [1]
    others = [
        asyncio.create_task(generator.tokenize(Prompt(text="long")))
        for _ in range(TRAITS.max_waiting - 1)
    ]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="8 of them for their tokens, and 1 more") as error:
        await generator.tokenize(Prompt(text="short"))
    assert error.value.retry_after_s > 0
    slow.goes_on.set()
    await asyncio.gather(long, *others)
    assert (await generator.tokenize(Prompt(text="short"))).ids == [1]
    with pytest.raises(InvalidRequestError, match="token_ids has 65 tokens"):
        await generator.detokenize([1] * 65, keep_special_tokens=False)
    await generator.close(1.0)
