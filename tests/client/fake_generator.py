"""A real gRPC server whose generated answers a test scripts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from enginehouse.v1 import generate_pb2
from enginehouse.v1 import inference_service_pb2 as pb
from tests.client.fake_server import Context, FakeServer, ScriptedError, _abort, model

__all__ = ["FakeGenerator"]

FIRST_ID, BOS = 100, 1

Step = Callable[[pb.GenerateRequest, int], Awaitable[None]]


class FakeGenerator(FakeServer):
    """Answers every prompt with as many tokens as were asked for, `per_message` at a time.

    Attributes:
        message_step: Awaited before each message with its number, from 0; may raise what `status`
            gives, or wait.
        asked: Requests that came, in order.
        per_message: Tokens of a message.
        num_left: Streams whose caller went away.
        finish_reason: How answers end; unspecified is not at all.
        tells_tokens: Whether it tokenizes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.message_step: Step = _no_step
        self.asked: list[pb.GenerateRequest] = []
        self.per_message = 1
        self.num_left = 0
        self.finish_reason = generate_pb2.FINISH_REASON_LENGTH
        self.tells_tokens = True
        writer = model("writer")
        writer.task = "generate"
        writer.limits.max_tokens = 512
        self.models = [writer, model()]

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> pb.GenerateResponse:
        answer = pb.GenerateResponse(model=request.model, version=1)
        try:
            async for sequence in self._sequences(request):
                answer.sequences.append(sequence)
        except ScriptedError as error:
            await _abort(context, error)
        whole = generate_pb2.GeneratedSequence()
        for sequence in answer.sequences:
            whole.MergeFrom(sequence)
        return pb.GenerateResponse(model=request.model, version=1, sequences=[whole])

    # Writes instead of yielding, which grpc.aio takes as well.
    async def GenerateStream(  # type: ignore[override]  # noqa: N802
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> None:
        try:
            async for sequence in self._sequences(request.request):
                await context.write(
                    pb.GenerateStreamResponse(
                        model=request.request.model, version=1, sequences=[sequence]
                    )
                )
        except ScriptedError as error:
            await _abort(context, error)
        except asyncio.CancelledError:
            self.num_left += 1
            raise

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Context
    ) -> pb.TokenizeResponse:
        if not self.tells_tokens:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no tokens told")
        text = request.prompt.text
        ids = [BOS, *(FIRST_ID + ord(letter) for letter in text)]
        return pb.TokenizeResponse(token_ids=ids, text=text, max_tokens=512)

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        return pb.DetokenizeResponse(
            text="".join(chr(i - FIRST_ID) for i in request.token_ids if i != BOS)
        )

    async def _sequences(
        self, request: pb.GenerateRequest
    ) -> AsyncIterator[generate_pb2.GeneratedSequence]:
        self.asked.append(request)
        num_asked = request.stopping.max_new_tokens
        starts = range(0, num_asked, self.per_message)
        for number, start in enumerate(starts):
            await self.message_step(request, number)
            ids = range(FIRST_ID + start, FIRST_ID + min(start + self.per_message, num_asked))
            sequence = generate_pb2.GeneratedSequence(text="a" * len(ids), token_ids=ids)
            if start == starts[-1]:
                self._finish(sequence, request)
            yield sequence

    def _finish(
        self, sequence: generate_pb2.GeneratedSequence, request: pb.GenerateRequest
    ) -> None:
        num_prompt = len(request.prompt.token_ids.ids) or 1 + len(request.prompt.text)
        sequence.finish_reason = self.finish_reason
        sequence.usage.prompt_tokens = num_prompt
        sequence.usage.cached_tokens = 3
        sequence.usage.generated_tokens = request.stopping.max_new_tokens
        sequence.timing.CopyFrom(
            generate_pb2.GenerateTiming(
                queue_ms=0.5, prefill_ms=1.0, ttft_ms=1.5, mean_itl_ms=0.25, total_ms=2.0
            )
        )


async def _no_step(request: pb.GenerateRequest, number: int) -> None:
    """Answers at once."""
