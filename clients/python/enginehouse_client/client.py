"""The client for programs without asyncio; aio.py has its twin. Safe to share between threads."""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse.v1 import model_service_pb2 as model_pb
from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceStub
from enginehouse.v1.model_service_pb2_grpc import ModelServiceStub

from ._base import ClientBase
from ._convert import answer_from_pb, classification_from_pb, model_from_pb, request_to_pb
from ._convert_generate import (
    GenerateArguments,
    generate_to_pb,
    generation_from_pb,
    piece_from_pb,
    prompt_to_pb,
)
from ._health import HEALTH_METHOD, health_request, is_serving
from ._outgoing import Outgoing
from ._status import Call, error_from_rpc
from .errors import ConnectionFailedError, DeadlineError
from .generate_messages import (
    Generation,
    GenerationPiece,
    OutputOptions,
    PromptInput,
    Sampling,
    Stopping,
    Structure,
    TokenizedPrompt,
)
from .messages import (
    Activation,
    Classification,
    ClassifyInput,
    ClassifyRequest,
    Model,
    StreamAnswer,
)
from .retry import Attempts

__all__ = ["Client"]

_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")


class Client(ClientBase):
    """Calls an Enginehouse server.

    with Client("127.0.0.1:50051") as client:
        print(client.classify("topics", "The match went to extra time.").results[0].labels[0])
    """

    def __enter__(self) -> Self:
        """The client; connects with the first call."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the connection."""
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that still run, in other threads, fail."""
        self._is_closed = True
        self._channel.close()

    def classify(  # noqa: PLR0913 - what a request may say, as keywords
        self,
        model: str,
        inputs: ClassifyInput | Sequence[ClassifyInput],
        *,
        version: int | None = None,
        version_label: str | None = None,
        priority: int | None = None,
        top_k: int | None = None,
        activation: Activation | None = None,
        truncate: bool = False,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Classification:
        """Classifies one input, or several in one request.

        Args:
            model: Name of the model as served.
            inputs: Strings or `TextPair`s.
            version: Version of the model; None is the newest served. Not with `version_label`.
            version_label: The operator's name for a version, such as "stable".
            priority: Among waiting requests the higher runs first; 0 if None.
            top_k: How many labels to return for each input, best first; None is all.
            activation: How logits become scores; None is as the model says.
            truncate: Cut an input that is too long instead of failing the request.
            timeout_s: Time for all attempts together; None is the client's.
            request_id: What the server's logs call this request, at most 128 printable characters
                without spaces; None makes one.

        Raises:
            EnginehouseError: One of its subclasses says what went wrong.
            ValueError: For a `request_id` or an activation that there cannot be.
        """
        request = ClassifyRequest(
            model, inputs, version, version_label, priority, top_k, activation, truncate
        )
        call = self._new_call(timeout_s, request_id)
        attempts = self._attempts(call)
        response = self._unary(self._inference.Classify, request_to_pb(request), call, attempts)
        return classification_from_pb(response, call.request_id)

    def classify_stream(
        self,
        requests: Iterable[tuple[str, ClassifyRequest]],
        *,
        max_in_flight: int = 256,
        timeout_s: float | None = None,
    ) -> Iterator[StreamAnswer]:
        """Classifies many requests over one stream; answers come as they finish.

        The requests are taken by a thread, as far ahead of the answers as `max_in_flight` says.
        Nothing is tried again. Leaving the iterator early cancels the rest.

        Args:
            requests: Requests, each with an id that no unanswered one has.
            max_in_flight: Most requests unanswered at any time.
            timeout_s: Time for the whole stream; None is without limit.

        Yields:
            The id and the labels, or the error, of each request.

        Raises:
            EnginehouseError: If the stream itself breaks.
        """
        call = Call(self.target, self._new_call().request_id, timeout_s)
        outgoing = Outgoing(requests, max_in_flight)
        responses = self._inference.ClassifyStream(
            outgoing, timeout=timeout_s, metadata=self._metadata_of(call)
        )
        try:
            for response in responses:
                outgoing.answered()
                yield answer_from_pb(response, self.target)
        except grpc.RpcError as failure:
            raise outgoing.failure or error_from_rpc(failure, call) from failure
        finally:
            outgoing.stop()
            responses.cancel()

    def generate(  # noqa: PLR0913 - what a request may say, as keywords
        self,
        model: str,
        prompt: PromptInput,
        *,
        sampling: Sampling | None = None,
        stopping: Stopping | None = None,
        output: OutputOptions | None = None,
        structure: Structure | None = None,
        version: int | None = None,
        version_label: str | None = None,
        priority: int | None = None,
        truncate_tokens: int | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Generation:
        """Continues a prompt, and answers when it is done.

        Args:
            model: Name of the model as served.
            prompt: A text, token ids, or a `Chat`.
            sampling: How tokens are chosen; None is by the model's own defaults.
            stopping: When a sequence ends; None is at the model's own end.
            output: What the answer holds beside the text.
            structure: What the text must look like; None is anything.
            version: Version of the model; None is the newest served. Not with `version_label`.
            version_label: The operator's name for a version, such as "stable".
            priority: Among waiting requests the higher runs first; 0 if None.
            truncate_tokens: Keep only so many of the last tokens of a longer prompt.
            timeout_s: Time for all attempts together; None is the client's.
            request_id: What the server's logs call this request; None makes one.

        Raises:
            EnginehouseError: One of its subclasses says what went wrong.
        """
        request = generate_to_pb(
            GenerateArguments(
                *(model, prompt, sampling, stopping, output, structure),
                *(version, version_label, priority, truncate_tokens),
            )
        )
        call = self._new_call(timeout_s, request_id)
        attempts = self._attempts(call)
        response = self._unary(self._inference.Generate, request, call, attempts)
        return generation_from_pb(response, call.request_id)

    def generate_stream(  # noqa: PLR0913 - what a request may say, as keywords
        self,
        model: str,
        prompt: PromptInput,
        *,
        sampling: Sampling | None = None,
        stopping: Stopping | None = None,
        output: OutputOptions | None = None,
        structure: Structure | None = None,
        version: int | None = None,
        version_label: str | None = None,
        priority: int | None = None,
        truncate_tokens: int | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Generator[GenerationPiece, None, None]:
        """Continues a prompt, and gives each piece of text as it comes.

        The arguments are those of `generate`, but `timeout_s` is for the whole stream, and None is
        without limit. A call that fails before its first piece is tried again. Closing the
        iterator, or leaving it, cancels the call.

        Raises:
            EnginehouseError: From the iterator; one of its subclasses says what went wrong.
        """
        request = generate_to_pb(
            GenerateArguments(
                *(model, prompt, sampling, stopping, output, structure),
                *(version, version_label, priority, truncate_tokens),
            )
        )
        call = Call(self.target, self._new_call(None, request_id).request_id, timeout_s)
        return self._pieces(pb.GenerateStreamRequest(request=request), call)

    def tokenize(
        self,
        model: str,
        prompt: PromptInput,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
    ) -> TokenizedPrompt:
        """The tokens that `generate` would begin with, and what a chat template makes of a chat."""
        call = self._new_call(timeout_s)
        request = pb.TokenizeRequest(
            model=model,
            version=version,
            version_label=version_label,
            prompt=prompt_to_pb(prompt),
        )
        attempts = self._attempts(call)
        found = self._unary(self._inference.Tokenize, request, call, attempts)
        return TokenizedPrompt(tuple(found.token_ids), found.text, found.max_tokens)

    def detokenize(
        self,
        model: str,
        token_ids: Sequence[int],
        *,
        keep_special_tokens: bool = False,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """The text of tokens."""
        call = self._new_call(timeout_s)
        request = pb.DetokenizeRequest(
            model=model,
            version=version,
            version_label=version_label,
            token_ids=token_ids,
            keep_special_tokens=keep_special_tokens,
        )
        attempts = self._attempts(call)
        found = self._unary(self._inference.Detokenize, request, call, attempts)
        return found.text

    def list_models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """Every model of the server's repository, by name and then version, newest first."""
        call = self._new_call(timeout_s)
        request = model_pb.ListModelsRequest()
        response = self._unary(self._models.ListModels, request, call, self._attempts(call))
        return tuple(model_from_pb(model) for model in response.models)

    def get_model(
        self, name: str, version: int | None = None, *, timeout_s: float | None = None
    ) -> Model:
        """One model; without a version the newest that is served, or else the newest."""
        call = self._new_call(timeout_s)
        request = model_pb.GetModelRequest(model=name, version=version)
        response = self._unary(self._models.GetModel, request, call, self._attempts(call))
        return model_from_pb(response.model)

    def is_healthy(self, model: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether a model serves, or the server as a whole; False if it cannot be reached.

        Raises:
            ModelNotFoundError: If the server has no such model.
        """
        call = self._new_call(timeout_s)
        try:
            response = self._unary(
                self._health, health_request(model), call, self._one_attempt(call)
            )
        except (ConnectionFailedError, DeadlineError):
            return False
        return is_serving(response)

    def _pieces(
        self, request: pb.GenerateStreamRequest, call: Call
    ) -> Generator[GenerationPiece, None, None]:
        attempts, metadata = self._attempts(call), self._metadata_of(call)
        wait_s: float | None = 0.0
        while wait_s is not None:
            has_begun = False
            responses = self._inference.GenerateStream(
                request, timeout=attempts.remaining_s(), metadata=metadata
            )
            try:
                for response in responses:
                    has_begun = True
                    yield piece_from_pb(response, call.request_id)
            except grpc.RpcError as failure:
                error = error_from_rpc(failure, call)
                wait_s = None if has_begun else attempts.wait_after(error)
                if wait_s is None:
                    raise error from failure
                time.sleep(wait_s)
            else:
                attempts.succeeded()
                return
            finally:
                responses.cancel()

    def _unary(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_RequestT, _ResponseT]",
        request: _RequestT,
        call: Call,
        attempts: Attempts,
    ) -> _ResponseT:
        metadata = self._metadata_of(call)
        while True:
            try:
                response = method(request, timeout=attempts.remaining_s(), metadata=metadata)
            except grpc.RpcError as failure:
                error = error_from_rpc(failure, call)
                wait_s = attempts.wait_after(error)
                if wait_s is None:
                    raise error from failure
                time.sleep(wait_s)
            except ValueError as failure:  # what gRPC says of a closed channel, among others
                if not self._is_closed:
                    raise
                raise self._closed(call) from failure
            else:
                attempts.succeeded()
                return response

    @cached_property
    def _channel(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self.target, self._options())
        return grpc.secure_channel(self.target, self._credentials, self._options())

    @cached_property
    def _inference(self) -> InferenceServiceStub:
        return InferenceServiceStub(self._channel)

    @cached_property
    def _models(self) -> ModelServiceStub:
        return ModelServiceStub(self._channel)

    @cached_property
    def _health(self) -> "grpc.UnaryUnaryMultiCallable[StringValue, Int32Value]":
        return self._channel.unary_unary(
            HEALTH_METHOD,
            request_serializer=StringValue.SerializeToString,
            response_deserializer=Int32Value.FromString,
        )
