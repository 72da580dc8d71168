"""Random requests of every kind that Generate meets, and what becomes of each of them.

Knows nothing of the server's process; soak.py looks at that.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import grpc
import numpy as np

from enginehouse.v1 import generate_pb2 as generate_pb
from enginehouse.v1 import inference_service_pb2 as pb
from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:  # exists only in the stubs' .pyi
    from enginehouse.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

__all__ = ["FINISHED", "LEFT", "STALLED", "Traffic", "TrafficSettings", "send_traffic"]

Kind = Literal["reads", "waits", "cancels", "disconnects", "hurries", "dawdles", "stalls"]

FINISHED, LEFT, STALLED = "finished", "left", "stalled"
_FULL, _LATE = "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"

_SHARES: dict[Kind, float] = {
    "reads": 0.33,  # a stream, to its end
    "waits": 0.15,  # for a whole answer
    "cancels": 0.2,  # a stream, after some messages
    "disconnects": 0.1,  # with its connection, after some messages
    "hurries": 0.1,  # has a deadline that it likely misses
    "dawdles": 0.1,  # reads slowly
    "stalls": 0.02,  # asks for much and does not read it
}
# A full queue may refuse anyone; beside that, each kind ends in its own ways alone.
_EXPECTED: dict[Kind, frozenset[str]] = {
    "reads": frozenset({FINISHED, _FULL}),
    "waits": frozenset({FINISHED, _FULL}),
    "cancels": frozenset({LEFT, FINISHED, _FULL}),  # a message may hold all tokens that are left
    "disconnects": frozenset({LEFT, FINISHED, _FULL}),
    "hurries": frozenset({FINISHED, _LATE, _FULL}),
    "dawdles": frozenset({FINISHED, _FULL}),
    "stalls": frozenset({FINISHED, STALLED, _FULL}),
}
_PATIENCE_S = 300.0
_STALL_PROMPT, _STALL_SEQUENCES, _STALL_LOGPROBS = 16, 2, 10
# A connection that takes little before its caller reads.
_NARROW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSettings:
    """What is sent.

    Attributes:
        seconds: How long requests arrive.
        rate: Arrivals a second, at random (Poisson) times.
        prompt_tokens: Fewest and most of a prompt, a shared prefix left out.
        prefix_tokens: Of the prefix that half of the prompts share.
        new_tokens: Fewest and most of an answer.
        vocabulary: Lowest and highest token id of prompts.
        deadline_s: Shortest and longest deadline of those that hurry.
        dawdle_s: Pause of slow readers before each message.
        stall_s: How long a stalled reader does not read, longer than the server's patience.
        stall_tokens: Of each of the answers that it does not read.
        seed: Of all that is random.
    """

    seconds: float
    rate: float
    prompt_tokens: tuple[int, int]
    prefix_tokens: int
    new_tokens: tuple[int, int]
    vocabulary: tuple[int, int]
    deadline_s: tuple[float, float]
    dawdle_s: float
    stall_s: float
    stall_tokens: int
    seed: int = 0


@dataclass(slots=True)
class Traffic:
    """What became of the requests.

    Attributes:
        endings: How many requests of a kind ended in a way.
        faults: What must not be, such as an ending that its kind cannot have.
    """

    endings: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def num_sent(self) -> int:
        """All requests; each has exactly one ending."""
        return self.endings.total()

    def num_ended(self, ending: str) -> int:
        """Requests of all kinds that ended so."""
        return sum(n for (_, found), n in self.endings.items() if found == ending)


@dataclass(frozen=True, slots=True)
class _Asked:
    kind: Kind
    due_s: float
    request: pb.GenerateRequest
    timeout_s: float
    leaves_after: int  # messages


async def send_traffic(address: str, model: str, settings: TrafficSettings) -> Traffic:
    """Sends requests at random times and returns when the last has ended.

    Args:
        address: Of the server.
        model: That is asked.
        settings: What is sent. The same settings send the same requests at the same times.

    Raises:
        ExceptionGroup: If a call fails with anything but a status.
    """
    traffic, loop = Traffic(), asyncio.get_running_loop()
    began = loop.time()
    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as group:
        for asked in _requests(model, settings):
            await asyncio.sleep(began + asked.due_s - loop.time())
            group.create_task(_send(traffic, address, channel, asked, settings))
    return traffic


def _requests(model: str, settings: TrafficSettings) -> Iterator[_Asked]:
    random = np.random.default_rng(settings.seed)
    low, high = settings.vocabulary
    prefix = random.integers(low, high, settings.prefix_tokens, endpoint=True)
    kinds, shares = list(_SHARES), list(_SHARES.values())
    due_s = random.exponential(1 / settings.rate)
    while due_s < settings.seconds:
        kind = kinds[random.choice(len(kinds), p=shares)]
        own = random.integers(low, high, random.integers(*settings.prompt_tokens), endpoint=True)
        prompt = np.concatenate((prefix, own)) if random.random() < 0.5 else own
        num_new = int(random.integers(*settings.new_tokens, endpoint=True))
        request = _request(model, prompt.tolist(), num_new, random)
        if kind == "stalls":
            _ask_for_much(request, settings.stall_tokens)
        timeout_s = random.uniform(*settings.deadline_s) if kind == "hurries" else _PATIENCE_S
        yield _Asked(kind, due_s, request, timeout_s, int(random.integers(1, max(num_new, 2))))
        due_s += random.exponential(1 / settings.rate)


def _request(
    model: str, prompt: list[int], num_new: int, random: np.random.Generator
) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model=model,
        priority=int(random.integers(-1, 2)),
        prompt=generate_pb.Prompt(token_ids=generate_pb.TokenIds(ids=prompt)),
        sampling=generate_pb.Sampling(
            temperature=float(random.choice((0.0, 1.0))),
            num_sequences=int(random.choice((1, 1, 1, 2))),
        ),
        stopping=generate_pb.Stopping(max_new_tokens=num_new, ignore_eos=True),
        output=generate_pb.OutputOptions(token_ids=True),
    )


def _ask_for_much(request: pb.GenerateRequest, num_tokens: int) -> None:
    del request.prompt.token_ids.ids[_STALL_PROMPT:]
    request.sampling.num_sequences = _STALL_SEQUENCES
    request.stopping.max_new_tokens = num_tokens
    request.output.logprobs = _STALL_LOGPROBS


class _Answer:
    """Takes the messages of an answer; each sequence must end once, and whole."""

    def __init__(self, request: pb.GenerateRequest) -> None:
        self._num_sequences = request.sampling.num_sequences
        self._num_new = request.stopping.max_new_tokens
        self._num_tokens: Counter[int] = Counter()
        self._ended: set[int] = set()
        self.faults: list[str] = []

    def take(self, message: pb.GenerateStreamResponse | pb.GenerateResponse) -> None:
        for sequence in message.sequences:
            if sequence.index in self._ended:
                self.faults.append(f"sequence {sequence.index} went on after its end")
            self._num_tokens[sequence.index] += len(sequence.token_ids)
            if sequence.finish_reason:
                self._ended.add(sequence.index)
                if sequence.finish_reason != generate_pb.FINISH_REASON_LENGTH:
                    name = generate_pb.FinishReason.Name(sequence.finish_reason)
                    self.faults.append(f"sequence {sequence.index} ended with {name}")

    def check_whole(self) -> None:
        whole = dict.fromkeys(range(self._num_sequences), self._num_new)
        if self._num_tokens != whole or self._ended != set(whole):
            self.faults.append(
                f"{self._num_sequences} sequences of {self._num_new} tokens were asked for; tokens"
                f" came for {dict(self._num_tokens)}, and {sorted(self._ended)} ended"
            )


async def _send(
    traffic: Traffic,
    address: str,
    shared: grpc.aio.Channel,
    asked: _Asked,
    settings: TrafficSettings,
) -> None:
    """Sends one request and takes down its only ending."""
    answer = _Answer(asked.request)
    own = None
    if asked.kind in {"disconnects", "stalls"}:
        own = grpc.aio.insecure_channel(address, _NARROW if asked.kind == "stalls" else ())
    try:
        stub: InferenceServiceAsyncStub = InferenceServiceStub(own or shared)
        if asked.kind == "waits":
            answer.take(await stub.Generate(asked.request, timeout=asked.timeout_s))
            ending = FINISHED
        else:
            ending = await _stream(stub, own, asked, answer, settings)
        if ending == FINISHED:
            answer.check_whole()
    except grpc.RpcError as error:
        ending = _ending_of(error)
    finally:
        if own is not None:
            await own.close()
    if ending not in _EXPECTED[asked.kind]:
        answer.faults.append(f"ended with {ending}")
    traffic.endings[asked.kind, ending] += 1
    traffic.faults += [f"a request that {asked.kind}: {fault}" for fault in answer.faults]


async def _stream(
    stub: "InferenceServiceAsyncStub",
    own: grpc.aio.Channel | None,
    asked: _Asked,
    answer: _Answer,
    settings: TrafficSettings,
) -> str:
    stream = stub.GenerateStream(
        pb.GenerateStreamRequest(request=asked.request), timeout=asked.timeout_s
    )
    num_messages = 0
    while isinstance(message := await stream.read(), pb.GenerateStreamResponse):
        answer.take(message)
        num_messages += 1
        if asked.kind in {"cancels", "disconnects"} and num_messages >= asked.leaves_after:
            if own is None:
                stream.cancel()
            else:
                await own.close()
            return LEFT
        if asked.kind == "dawdles":
            await asyncio.sleep(settings.dawdle_s)
        if asked.kind == "stalls" and num_messages == 1:
            await asyncio.sleep(settings.stall_s)
    return FINISHED


def _ending_of(error: grpc.RpcError) -> str:
    assert isinstance(error, grpc.aio.AioRpcError)
    code, text = error.code(), error.details() or ""
    is_stalled = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "was not read for" in text
    return STALLED if is_stalled else code.name
