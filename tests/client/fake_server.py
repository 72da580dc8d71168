"""A real gRPC server whose answers a test scripts."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NoReturn, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from enginehouse.v1 import generate_pb2 as generate_pb
from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse.v1 import model_service_pb2 as model_pb
from enginehouse.v1 import types_pb2
from enginehouse.v1.inference_service_pb2_grpc import (
    InferenceServiceServicer,
    add_InferenceServiceServicer_to_server,
)
from enginehouse.v1.model_service_pb2_grpc import (
    ModelServiceServicer,
    add_ModelServiceServicer_to_server,
)

__all__ = ["FakeServer", "ScriptedError", "ServerThread", "running", "running_in_thread", "status"]

Context: TypeAlias = "grpc.aio.ServicerContext[Message, Message]"
Step = Callable[[pb.ClassifyRequest], Awaitable[None]]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ScriptedError(Exception):
    """Ends a request with a status."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


def status(
    code: grpc.StatusCode,
    message: str,
    reason: str = "",
    retry_after_ms: int | None = None,
    field: str = "",
) -> ScriptedError:
    """A failure as the server sends it."""
    details: list[Message] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="enginehouse"))
    if retry_after_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(retry_after_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    return ScriptedError(status_pb2.Status(code=code.value[0], message=message, details=packed))


class FakeServer(InferenceServiceServicer, ModelServiceServicer):
    """Answers every request alike, after the step that the test put in.

    Attributes:
        step: Awaited for each request; may raise what `status` gives, or wait.
        requests: What came, in order.
        metadata: Metadata of each unary call.
        models: What ListModels says.
        end_stream_after: Aborts a stream after so many answers.
        pieces: What is generated.
        generate_step: Awaited before each piece, with its position; may raise, or wait.
        prompts: Requests to generate or tokenize that came, in order.
        num_cancelled: Streams of pieces that their callers left.
    """

    def __init__(self) -> None:
        self.step: Step = _no_step
        self.requests: list[pb.ClassifyRequest] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.models = [model()]
        self.end_stream_after: int | None = None
        self.pieces = ["One", " two", " three."]
        self.generate_step: Callable[[int], Awaitable[None]] = _no_pause
        self.prompts: list[pb.GenerateRequest | pb.TokenizeRequest] = []
        self.num_cancelled = 0
        self.health = HealthServicer()
        self.port = 0

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def Classify(  # noqa: N802
        self, request: pb.ClassifyRequest, context: Context
    ) -> pb.ClassifyResponse:
        self.metadata.append(dict(context.invocation_metadata() or ()))
        try:
            return await self._answer(request)
        except ScriptedError as error:
            return await _abort(context, error)

    # Writes instead of yielding, which grpc.aio takes as well.
    async def ClassifyStream(  # type: ignore[override]  # noqa: N802
        self,
        requests: AsyncIterator[pb.ClassifyStreamRequest],
        context: Context,
    ) -> None:
        tasks = set()
        one_at_a_time = asyncio.Lock()

        async def answer(item: pb.ClassifyStreamRequest) -> None:
            outcome = pb.ClassifyStreamResponse(id=item.id)
            try:
                outcome.response.CopyFrom(await self._answer(item.request))
            except ScriptedError as error:
                outcome.error.CopyFrom(error.status)
            async with one_at_a_time:
                await context.write(outcome)

        async for item in requests:
            tasks.add(asyncio.create_task(answer(item)))
            if self.end_stream_after is not None and len(tasks) >= self.end_stream_after:
                await asyncio.wait(tasks, timeout=0.1)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        await asyncio.gather(*tasks)

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> pb.GenerateResponse:
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.prompts.append(request)
        try:
            await self.generate_step(0)
        except ScriptedError as error:
            return await _abort(context, error)
        return pb.GenerateResponse(
            model=request.model,
            version=request.version or 1,
            sequences=[ended("".join(self.pieces), i) for i in range(num_sequences(request))],
            prompt_logprobs=[scored("The", -0.5)],
        )

    async def GenerateStream(  # type: ignore[override]  # noqa: N802
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> None:
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.prompts.append(request.request)
        try:
            for position, text in enumerate(self.pieces):
                await self.generate_step(position)
                is_last = position == len(self.pieces) - 1
                piece = ended(text) if is_last else generate_pb.GeneratedSequence(text=text)
                await context.write(
                    pb.GenerateStreamResponse(model=request.request.model, sequences=[piece])
                )
        except ScriptedError as error:
            await _abort(context, error)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Context
    ) -> pb.TokenizeResponse:
        self.prompts.append(request)
        return pb.TokenizeResponse(token_ids=[1, 5, 6], text="<s>a b", max_tokens=64)

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        kept = "<s>" if request.keep_special_tokens else ""
        return pb.DetokenizeResponse(text=kept + " ".join(map(str, request.token_ids)))

    async def ListModels(  # noqa: N802
        self, request: model_pb.ListModelsRequest, context: Context
    ) -> model_pb.ListModelsResponse:
        return model_pb.ListModelsResponse(models=self.models)

    async def GetModel(  # noqa: N802
        self, request: model_pb.GetModelRequest, context: Context
    ) -> model_pb.GetModelResponse:
        for known in self.models:
            if known.name == request.model and request.version in (0, known.version):
                return model_pb.GetModelResponse(model=known)
        text = f"no model {request.model!r}"
        return await _abort(context, status(grpc.StatusCode.NOT_FOUND, text, "ModelNotFoundError"))

    async def _answer(self, request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        self.requests.append(request)
        await self.step(request)
        return response(request)


async def _abort(context: Context, error: ScriptedError) -> NoReturn:
    await context.abort(
        _CODES[error.status.code],
        error.status.message,
        (("grpc-status-details-bin", error.status.SerializeToString()),),
    )


async def _no_step(request: pb.ClassifyRequest) -> None:
    """Answers at once."""


async def _no_pause(position: int) -> None:
    """Goes on at once."""


def num_sequences(request: pb.GenerateRequest) -> int:
    """How many sequences a request asks for."""
    return request.sampling.num_sequences or 1


def scored(text: str, logprob: float) -> generate_pb.TokenLogprob:
    """A token and how likely it was, with one other."""
    other = generate_pb.TokenLogprob(token_id=8, text="!", logprob=-3.0)
    return generate_pb.TokenLogprob(token_id=7, text=text, logprob=logprob, top=[other])


def ended(text: str, index: int = 0) -> generate_pb.GeneratedSequence:
    """The last that is heard of a sequence."""
    return generate_pb.GeneratedSequence(
        index=index,
        text=text,
        token_ids=[7, 8, 9],
        logprobs=[scored(" two", -1.0)],
        finish_reason=generate_pb.FINISH_REASON_STOP,
        stop_string="\n",
        usage=generate_pb.Usage(prompt_tokens=4, cached_tokens=2, generated_tokens=3),
        timing=generate_pb.GenerateTiming(
            queue_ms=0.5, prefill_ms=1.5, ttft_ms=2.0, mean_itl_ms=1.25, total_ms=4.5
        ),
    )


def writer() -> model_pb.Model:
    """A model that generates."""
    found = model("writer")
    found.task, found.accepts_chat = "generate", True
    found.ClearField("labels")
    return found


def model(name: str = "topics", version: int = 1) -> model_pb.Model:
    """A model as the server describes it."""
    certificate = types_pb2.Certificate(reference="transformers", num_samples=9, min_cosine=1.0)
    return model_pb.Model(
        name=name,
        version=version,
        task="classify",
        state=types_pb2.MODEL_STATE_READY,
        labels=["business", "sports"],
        activation=types_pb2.ACTIVATION_SOFTMAX,
        limits=types_pb2.ModelLimits(
            max_tokens=128, max_batch=8, max_batch_tokens=1024, max_inputs=4
        ),
        engine=types_pb2.Engine(
            backend="openvino",
            target="openvino",
            precision="fp32",
            runtime_version="1",
            device="CPU",
            certificate=certificate,
        ),
        source="example/topics",
    )


def response(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
    """Labels whose order follows from the first letter, so that answers can be told apart."""
    return pb.ClassifyResponse(
        model=request.model,
        version=request.version or 1,
        results=[_result(item, request) for item in request.inputs],
    )


def _result(item: pb.ClassifyInput, request: pb.ClassifyRequest) -> pb.ClassifyResult:
    labels = [
        pb.Label(label="sports", score=0.75, index=1),
        pb.Label(label=item.text[:40], score=0.25, index=0),
    ]
    timing = types_pb2.Timing(
        tokenize_ms=0.1,
        queue_ms=0.2,
        compute_ms=1.5,
        total_ms=2.0,
        batch_size=4,
        padding_fraction=0.25,
    )
    return pb.ClassifyResult(
        labels=labels[: request.top_k or None],
        num_tokens=len(item.text.split()) + 2,
        truncated=request.truncate,
        timing=timing,
    )


@asynccontextmanager
async def running(fake: FakeServer) -> AsyncIterator[FakeServer]:
    """The server, listening on a free port of the loopback interface."""
    server = grpc.aio.server()
    add_InferenceServiceServicer_to_server(fake, server)
    add_ModelServiceServicer_to_server(fake, server)
    add_HealthServicer_to_server(fake.health, server)
    for name, serving in (("", "SERVING"), ("topics", "SERVING"), ("cold", "NOT_SERVING")):
        await fake.health.set(name, health_pb2.HealthCheckResponse.ServingStatus.Value(serving))
    fake.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(grace=0)


class ServerThread:
    """Runs the server in an event loop of its own, for clients that block."""

    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def start(self) -> None:
        """Returns when it listens."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Returns when it has ended."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with running(self._fake):
            self._ready.set()
            await self._stop.wait()


@contextmanager
def running_in_thread(fake: FakeServer) -> Iterator[FakeServer]:
    """The server, listening, beside the test's own thread."""
    thread = ServerThread(fake)
    thread.start()
    try:
        yield fake
    finally:
        thread.stop()
