"""Generation over gRPC against other engines in process: requests together, and mixed arrivals."""

import itertools
from collections.abc import Iterator, Sequence
from statistics import median

from enginehouse_server.engine.threads import available_threads

from .models import build_model
from .pairs import Comparison, compare
from .peers import ONNXRUNTIME_GENAI, OPENVINO_GENAI, Peer, PeerError, PeerProcess
from .processes import Served
from .workload import Replayed, mixed, replay, together

__all__ = ["mixed_beside_peer", "together_beside_peers"]

_PROMPT, _NEW = 128, 96  # tokens
_CACHE = ("--cache-memory", "2")  # GiB, as the peers have
_BACKLOG = 24  # requests
_LOAD = 0.9  # of what a backlog shows to be sustainable

_TOGETHER: tuple[tuple[Peer, Sequence[int], float], ...] = (
    (OPENVINO_GENAI, (1, 8, 16), 0.95),
    (ONNXRUNTIME_GENAI, (8,), 2.0),
)


def together_beside_peers(shape: str, num_pairs: int) -> Iterator[Comparison | str]:
    """Tokens a second of equal requests submitted at once, their prompts included."""
    with Served(build_model(shape, "int8"), *_CACHE) as server:
        for peer, sizes, bar in _TOGETHER:
            try:
                with PeerProcess(peer, shape, available_threads()) as process:
                    for size, streamed in itertools.product(sizes, (True, False)):
                        yield _together(server, process, shape, size, num_pairs, bar, streamed)
            except PeerError as error:
                yield f"not measured: {error}"


def mixed_beside_peer(shape: str, num_pairs: int, seconds: float) -> Iterator[Comparison | str]:
    """Random arrivals near saturation, half of them with a prefix in common."""
    with Served(build_model(shape, "int8"), *_CACHE) as server:
        try:
            with PeerProcess(OPENVINO_GENAI, shape, available_threads()) as process:
                yield from _mixed(server, process, shape, num_pairs, seconds)
        except PeerError as error:
            yield f"not measured: {error}"


def _together(
    server: Served,
    peer: PeerProcess,
    shape: str,
    size: int,
    num_pairs: int,
    bar: float,
    streamed: bool,
) -> Comparison:
    seeds = itertools.count(0, 1000)  # no prompt is ever asked again

    def ours() -> float:
        requests = together(size, _PROMPT, _NEW, next(seeds))
        address = server.address
        return replay(address, server.model, requests, streamed=streamed).tokens_per_second

    def theirs() -> float:
        return peer.replay(together(size, _PROMPT, _NEW, next(seeds))).tokens_per_second

    ours(), theirs()  # kernels are made for new shapes
    how = "streamed" if streamed else "answered whole"
    name = f"{shape} int8, {size} together, {how}, over {peer.name}"
    return compare(name, "tokens/s", ours, theirs, num_pairs, bar)


def _mixed(
    server: Served, peer: PeerProcess, shape: str, num_pairs: int, seconds: float
) -> Iterator[Comparison | str]:
    rate = _LOAD * _sustainable_rate(peer)
    replay(server.address, server.model, mixed(rate, seconds / 4, seed=1))
    ours, theirs = list[Replayed](), list[Replayed]()
    for turn in range(num_pairs):
        requests = mixed(rate, seconds, seed=1000 + turn)
        ours.append(replay(server.address, server.model, requests))
        theirs.append(peer.replay(requests))
    yield Comparison(
        f"{shape} int8, mixed arrivals over {peer.name}",
        "tokens/s",
        [r.tokens_per_second for r in ours],
        [r.tokens_per_second for r in theirs],
        0.97,
    )
    yield f"  {rate:.2f} requests/s, {_LOAD:g} of what the peer does with a backlog"
    yield _lower(
        "time to first token, median", [r.ttft_ms for r in ours], [r.ttft_ms for r in theirs]
    )
    yield _lower(
        "between two tokens, p99", [r.itl_p99_ms for r in ours], [r.itl_p99_ms for r in theirs]
    )


def _sustainable_rate(peer: PeerProcess) -> float:
    """Requests a second of the peer with many waiting, the second time: kernels are made then."""
    rates = []
    for seed in (2, 3):
        backlog = mixed(1e6, 1e-6 * _BACKLOG, seed)
        done = peer.replay([*backlog])
        rates.append(len(backlog) / max(times[-1] for times in done.times))
    return rates[-1]


def _lower(name: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return (
        f"  {name}: {median(ours):.0f} against {median(theirs):.0f} ms, {median(ratios):.3f} of it "
        f"({min(ratios):.3f} to {max(ratios):.3f}; bar: below 1)"
    )
