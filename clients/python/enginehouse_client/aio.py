"""The client for programs with asyncio; client.py has its twin. Belongs to one event loop."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse.v1 import model_service_pb2 as model_pb
from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceStub
from enginehouse.v1.model_service_pb2_grpc import ModelServiceStub

from ._base import ClientBase
from ._convert import classification_from_pb, model_from_pb, request_to_pb
from ._convert_generate import (
    GenerateArguments,
    generate_to_pb,
    generation_from_pb,
    piece_from_pb,
    prompt_to_pb,
)
from ._health import HEALTH_METHOD, health_request, is_serving
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
from .messages import Activation, Classification, ClassifyInput, ClassifyRequest, Model
from .retry import Attempts
from .stream import ClassifyStream

if TYPE_CHECKING:  # these two exist only in the stubs' .pyi
    from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub
    from enginehouse.v1.model_service_pb2_grpc import ModelServiceAsyncStub

__all__ = ["AsyncClient"]

_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")


class AsyncClient(ClientBase):
    """Calls an Enginehouse server.

    async with AsyncClient("127.0.0.1:50051") as client:
        answer = await client.classify("topics", "The match went to extra time.")
    """

    async def __aenter__(self) -> Self:
        """The client; connects with the first call."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the connection."""
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls that still run, in other tasks, fail."""
        self._is_closed = True
        await self._channel.close()

    async def classify(  # noqa: PLR0913 - what a request may say, as keywords
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
        """Classifies one input, or several in one request; see `Client.classify`.

        Raises:
            EnginehouseError: One of its subclasses says what went wrong.
        """
        request = ClassifyRequest(
            model, inputs, version, version_label, priority, top_k, activation, truncate
        )
        call = self._new_call(timeout_s, request_id)
        attempts = self._attempts(call)
        message = request_to_pb(request)
        response = await self._unary(self._inference.Classify, message, call, attempts)
        return classification_from_pb(response, call.request_id)

    def classify_stream(self, *, max_in_flight: int = 256) -> ClassifyStream:
        """A stream that many requests share, for high rates; to be entered with `async with`.

        Args:
            max_in_flight: Most requests unanswered at any time; further ones wait.
        """
        call = self._new_call()
        metadata = self._metadata_of(call)
        return ClassifyStream(self._inference, call, metadata, max_in_flight, self._attempts)

    async def generate(  # noqa: PLR0913 - what a request may say, as keywords
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
        """Continues a prompt, and answers when it is done; see `Client.generate`.

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
        response = await self._unary(self._inference.Generate, request, call, attempts)
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
    ) -> AsyncGenerator[GenerationPiece, None]:
        """Continues a prompt piece by piece; see `Client.generate_stream`.

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

    async def tokenize(
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
        found = await self._unary(self._inference.Tokenize, request, call, attempts)
        return TokenizedPrompt(tuple(found.token_ids), found.text, found.max_tokens)

    async def detokenize(
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
        found = await self._unary(self._inference.Detokenize, request, call, attempts)
        return found.text

    async def list_models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """Every model of the server's repository, by name and then version, newest first."""
        call = self._new_call(timeout_s)
        request = model_pb.ListModelsRequest()
        response = await self._unary(self._models.ListModels, request, call, self._attempts(call))
        return tuple(model_from_pb(model) for model in response.models)

    async def get_model(
        self, name: str, version: int | None = None, *, timeout_s: float | None = None
    ) -> Model:
        """One model; without a version the newest that is served, or else the newest."""
        call = self._new_call(timeout_s)
        request = model_pb.GetModelRequest(model=name, version=version)
        response = await self._unary(self._models.GetModel, request, call, self._attempts(call))
        return model_from_pb(response.model)

    async def is_healthy(self, model: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether a model serves, or the server as a whole; False if it cannot be reached.

        Raises:
            ModelNotFoundError: If the server has no such model.
        """
        call = self._new_call(timeout_s)
        request = health_request(model)
        try:
            response = await self._unary(self._health, request, call, self._one_attempt(call))
        except (ConnectionFailedError, DeadlineError):
            return False
        return is_serving(response)

    async def _pieces(
        self, request: pb.GenerateStreamRequest, call: Call
    ) -> AsyncGenerator[GenerationPiece, None]:
        attempts, metadata = self._attempts(call), self._metadata_of(call)
        while not self._is_closed:
            has_begun = False
            responses = self._inference.GenerateStream(
                request, timeout=attempts.remaining_s(), metadata=metadata
            )
            try:
                async for response in responses:
                    has_begun = True
                    yield piece_from_pb(response, call.request_id)
            except asyncio.CancelledError:
                if self._is_cancelled_by_caller():
                    raise
                break
            except grpc.RpcError as failure:
                error = error_from_rpc(failure, call)
                wait_s = None if has_begun else attempts.wait_after(error)
                if wait_s is None:
                    raise error from failure
                await asyncio.sleep(wait_s)
            else:
                attempts.succeeded()
                return
            finally:
                responses.cancel()
        raise self._closed(call)

    async def _unary(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[_RequestT, _ResponseT]",
        request: _RequestT,
        call: Call,
        attempts: Attempts,
    ) -> _ResponseT:
        metadata = self._metadata_of(call)
        while not self._is_closed:
            try:
                response = await method(request, timeout=attempts.remaining_s(), metadata=metadata)
            except asyncio.CancelledError:
                if self._is_cancelled_by_caller():
                    raise
                break
            except grpc.RpcError as failure:
                error = error_from_rpc(failure, call)
                wait_s = attempts.wait_after(error)
                if wait_s is None:
                    raise error from failure
                await asyncio.sleep(wait_s)
            else:
                attempts.succeeded()
                return response
        raise self._closed(call)

    def _is_cancelled_by_caller(self) -> bool:
        """Otherwise by grpc.aio: so it ends the calls of a channel that closes."""
        task = asyncio.current_task()
        return not self._is_closed or (task is not None and task.cancelling() > 0)

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, self._options())
        return grpc.aio.secure_channel(self.target, self._credentials, self._options())

    @cached_property
    def _inference(self) -> "InferenceServiceAsyncStub":
        return InferenceServiceStub(self._channel)

    @cached_property
    def _models(self) -> "ModelServiceAsyncStub":
        return ModelServiceStub(self._channel)

    @cached_property
    def _health(self) -> "grpc.aio.UnaryUnaryMultiCallable[StringValue, Int32Value]":
        return self._channel.unary_unary(
            HEALTH_METHOD,
            request_serializer=StringValue.SerializeToString,
            response_deserializer=Int32Value.FromString,
        )
