"""The inference service: thin, every method converts, calls the model and converts back."""

from collections.abc import AsyncIterator
from functools import partial

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceServicer
from enginehouse_server.repository import Catalog, Entry
from enginehouse_server.tasks import Classifier, Generator
from enginehouse_server.telemetry import Metrics

from .call import Call, Context
from .convert_classify import classify_request, classify_response
from .convert_generate import generate_request, prompt_of
from .generating import whole_answer, write_pieces
from .in_flight import InFlight
from .streaming import AnswerStream

__all__ = ["Inference"]


_Request = pb.ClassifyRequest | pb.GenerateRequest | pb.TokenizeRequest | pb.DetokenizeRequest


class Inference(InferenceServiceServicer):
    """Runs models for callers."""

    def __init__(
        self,
        catalog: Catalog,
        metrics: Metrics,
        in_flight: InFlight,
        stall_timeout_s: float,
        max_message_bytes: int,
    ) -> None:
        """Takes the models, the seconds after which a stream that is not read ends, and a size."""
        self._max_message_bytes = max_message_bytes
        self._catalog, self._metrics, self._in_flight = catalog, metrics, in_flight
        self._stall_timeout_s = stall_timeout_s

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        """Labels for the texts of one request."""
        self._in_flight.hold(context)
        async with Call("Classify", context, self._metrics) as call:
            entry, classifier = self._catalog.classifier(*_model_of(request))
            call.telemetry = classifier.telemetry
            return await _classify(entry, classifier, request, call)

    async def ClassifyStream(  # type: ignore[override]  # writes its answers itself
        self, request_iterator: AsyncIterator[pb.ClassifyStreamRequest], context: Context
    ) -> None:
        """Labels for requests as they come, each answered when it is done."""
        async with Call("ClassifyStream", context, self._metrics) as call:
            await call.metadata_sent()
            stream = AnswerStream(context, partial(self._answer_one, call), self._in_flight)
            await stream.run(request_iterator)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """The text that a model continues a prompt with."""
        self._in_flight.hold(context)
        async with Call("Generate", context, self._metrics) as call:
            entry, generator = self._generator(request, call)
            plain = generate_request(request, call.time_left_s, self._max_message_bytes)
            async with generator.generate(plain) as generation:
                return await whole_answer(entry, generation)

    async def GenerateStream(  # type: ignore[override]  # writes its answers itself
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> None:
        """The text, piece by piece."""
        self._in_flight.hold(context)
        async with Call("GenerateStream", context, self._metrics) as call:
            entry, generator = self._generator(request.request, call)
            plain = generate_request(request.request, call.time_left_s)
            async with generator.generate(plain) as generation:
                await call.metadata_sent()
                await write_pieces(context, entry, generation, self._stall_timeout_s)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """The tokens of a prompt."""
        self._in_flight.hold(context)
        async with Call("Tokenize", context, self._metrics) as call:
            _, generator = self._generator(request, call)
            found = await generator.tokenize(prompt_of(request.prompt))
            return pb.TokenizeResponse(
                token_ids=found.ids, text=found.text, max_tokens=generator.traits.max_tokens
            )

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        """The text of tokens."""
        self._in_flight.hold(context)
        async with Call("Detokenize", context, self._metrics) as call:
            _, generator = self._generator(request, call)
            text = await generator.detokenize(
                request.token_ids, keep_special_tokens=request.keep_special_tokens
            )
            return pb.DetokenizeResponse(text=text)

    async def _answer_one(
        self, call: Call, message: pb.ClassifyStreamRequest
    ) -> pb.ClassifyStreamResponse:
        """The answer to one request of a stream, be it an error."""
        with call.part() as part:
            entry, classifier = self._catalog.classifier(*_model_of(message.request))
            part.telemetry = classifier.telemetry
            response = await _classify(entry, classifier, message.request, call)
            return pb.ClassifyStreamResponse(id=message.id, response=response)
        return pb.ClassifyStreamResponse(id=message.id, error=part.status)

    def _generator(self, request: _Request, call: Call) -> tuple[Entry, Generator]:
        entry, generator = self._catalog.generator(*_model_of(request))
        call.telemetry = generator.telemetry
        return entry, generator


def _model_of(request: _Request) -> tuple[str, int | None, str | None]:
    """Name, version and label of the model that a request asks for."""
    version = request.version if request.HasField("version") else None
    label = request.version_label if request.HasField("version_label") else None
    return request.model, version, label


async def _classify(
    entry: Entry, classifier: Classifier, message: pb.ClassifyRequest, call: Call
) -> pb.ClassifyResponse:
    reply = await classifier.classify(classify_request(message, call.time_left_s))
    return classify_response(entry, classifier.traits.labels, reply)
