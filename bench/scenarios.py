"""What is measured, each scenario by itself: it starts what it needs and stops it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from enginehouse_builder.demo.classifier import heldout
from enginehouse_client import Client
from enginehouse_server.engine.openvino.device import describe_device

from .models import FOLDER, build_model, tokenizer_of
from .pairs import Comparison, compare
from .processes import Floor, Load, Served, run_load
from .texts import mixed_texts, text_of

__all__ = ["SCENARIOS", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How long to measure.

    Attributes:
        num_pairs: Turns of each comparison.
        seconds: Of each side of a turn.
        num_lanes: Lanes of the server, and of the floor.
    """

    num_pairs: int
    seconds: float
    num_lanes: int


Scenario = Callable[[Settings], Iterator[Comparison | str]]


def throughput_base(settings: Settings) -> Iterator[Comparison | str]:
    """BERT-base shape over the floor."""
    with _Rig("base", "fp32", settings) as rig:
        yield rig.over_floor("base fp32, 32 in flight", 0.97, 32)


def throughput_minilm(settings: Settings) -> Iterator[Comparison | str]:
    """MiniLM shape, fp32: over the floor, tail and padding."""
    with _Rig("minilm", "fp32", settings) as rig:
        yield rig.over_floor("minilm fp32, 32 in flight", 0.82, 32)
        tail = [load["latency_ms"]["p99"] / load["latency_ms"]["p50"] for load in rig.loads]
        yield f"  p99 / p50 at 32 in flight: {median(tail):.2f} (bar: at most 1.6)"
        yield rig.over_floor("minilm fp32, 64 in flight", 0.92, 64)
        padding = [load["server"]["padding_fraction"]["mean"] for load in rig.loads]
        yield f"  padding at 64 in flight: {median(padding):.1%} (bar: at most 20 %)"
        yield rig.over_floor("minilm fp32, 16 texts a request, 8 in flight", 0.95, 8, *_TEXTS_16)
        yield rig.over_floor("minilm fp32, streamed, 64 in flight", 0.95, 64, "--stream")


def throughput_minilm_int8(settings: Settings) -> Iterator[Comparison | str]:
    """MiniLM shape, int8, over the floor."""
    with _Rig("minilm", "int8", settings) as rig:
        yield rig.over_floor("minilm int8, 64 in flight", 0.75, 64)
        yield rig.over_floor("minilm int8, 16 texts a request, 8 in flight", 0.90, 8, *_TEXTS_16)
        yield rig.over_floor("minilm int8, streamed, 64 in flight", 0.90, 64, "--stream")


def over_naive(settings: Settings) -> Iterator[Comparison | str]:
    """Both shapes over a naive server, 64 in flight."""
    for shape, bar in (("minilm", 1.5), ("base", 1.3)):
        with _Rig(shape, "fp32", settings) as rig:
            yield from rig.over_naive(64, bar)


def latency_single(settings: Settings) -> Iterator[Comparison | str]:
    """What the server adds to one text at one in flight."""
    version = build_model("minilm", "fp32")
    texts_file = FOLDER / "text-28.txt"
    texts_file.write_text(text_of(tokenizer_of(version), 28) + "\n", encoding="utf-8")
    lanes = ("--lanes", str(settings.num_lanes))
    with Served(version, *lanes) as server, Floor(version, texts_file, settings.num_lanes) as floor:
        added = []
        for _ in range(settings.num_pairs):
            load = _load(server, texts_file, 1, settings.seconds)
            added.append(load["latency_ms"]["p50"] - floor.measure("single"))
    low, high = min(added), max(added)
    yield (
        f"minilm fp32, one in flight, 28 tokens: p50 is {median(added):.2f} ms "
        f"({low:.2f} to {high:.2f}) over the engine's own time (bar: at most 1.5 ms)"
    )


def precisions(settings: Settings) -> Iterator[Comparison | str]:
    """BERT-base shape: int8 and bf16 over fp32, both served, 32 in flight."""
    bars = {"int8": 2.5}
    if describe_device().has_bf16:
        bars["bf16"] = 1.6
    else:
        yield "  bf16: this processor does not compute in it"
    with ExitStack() as stack:
        versions = {p: build_model("base", p) for p in ("fp32", *bars)}
        texts_file = _texts_file("base", versions["fp32"])
        lanes = ("--lanes", str(settings.num_lanes))
        servers = {p: stack.enter_context(Served(v, *lanes)) for p, v in versions.items()}

        def rate(precision: str) -> Callable[[], float]:
            return lambda: _tokens(_load(servers[precision], texts_file, 32, settings.seconds))

        for precision, bar in bars.items():
            name = f"base {precision} over fp32, served"
            sides = rate(precision), rate("fp32")
            yield compare(name, "tokens/s", *sides, settings.num_pairs, bar)


def agreement(_: Settings) -> Iterator[Comparison | str]:
    """The demo classifier in int8 and in fp32, both served, on its held-out sentences."""
    texts = [labelled.text for labelled in heldout()]
    labels = {}
    for precision in ("fp32", "int8"):
        version = build_model("topics", precision)
        with Served(version) as server, Client(server.address) as client:
            reply = client.classify(server.model, texts, top_k=1)
            labels[precision] = [result.labels[0].label for result in reply.results]
    same = sum(a == b for a, b in zip(labels["fp32"], labels["int8"], strict=True)) / len(texts)
    yield f"topics, int8 and fp32 say the same of {same:.1%} of {len(texts)} texts (bar: 99 %)"


SCENARIOS: dict[str, Scenario] = {
    "latency": latency_single,
    "minilm": throughput_minilm,
    "minilm-int8": throughput_minilm_int8,
    "base": throughput_base,
    "naive": over_naive,
    "precisions": precisions,
    "agreement": agreement,
}

_TEXTS_16 = ("--texts-per-request", "16")
_NUM_TEXTS = {"minilm": 512, "base": 128}


class _Rig:
    """A server and the floor of the same version."""

    def __init__(self, shape: str, precision: str, settings: Settings) -> None:
        self._settings, self._shape = settings, shape
        self._version = build_model(shape, precision)
        self._texts_file = _texts_file(shape, self._version)
        self.loads: list[Load] = []

    def __enter__(self) -> "_Rig":
        lanes = self._settings.num_lanes
        with ExitStack() as stack:
            self._server = stack.enter_context(Served(self._version, "--lanes", str(lanes)))
            self._floor = stack.enter_context(Floor(self._version, self._texts_file, lanes))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def over_floor(self, name: str, bar: float, in_flight: int, *flags: str) -> Comparison:
        """Tokens a second served over the floor's."""
        self.loads = []

        def served() -> float:
            load = _load(self._server, self._texts_file, in_flight, self._settings.seconds, *flags)
            self.loads.append(load)
            return _tokens(load)

        return compare(
            name,
            "tokens/s",
            served,
            lambda: self._floor.measure(f"throughput {self._settings.seconds}"),
            self._settings.num_pairs,
            bar,
        )

    def over_naive(self, in_flight: int, bar: float) -> Iterator[Comparison | str]:
        """Texts a second and p99 over a naive server's."""
        ours: list[Load] = []
        theirs: list[Load] = []

        def rate(server: Served, loads: list[Load]) -> float:
            loads.append(_load(server, self._texts_file, in_flight, self._settings.seconds))
            return _tokens(loads[-1])

        with Served(self._version, naive=True) as naive:
            yield compare(
                f"{self._shape} fp32 over a naive server, {in_flight} in flight",
                "tokens/s",
                lambda: rate(self._server, ours),
                lambda: rate(naive, theirs),
                self._settings.num_pairs,
                bar,
            )
        p99 = [median(load["latency_ms"]["p99"] for load in loads) for loads in (ours, theirs)]
        yield f"  p99: {p99[0]:.0f} ms against {p99[1]:.0f} ms (bar: lower)"


def _texts_file(shape: str, version: Path) -> Path:
    file = FOLDER / f"texts-{_NUM_TEXTS[shape]}.txt"
    texts = mixed_texts(tokenizer_of(version), _NUM_TEXTS[shape])
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return file


def _load(server: Served, texts_file: Path, in_flight: int, seconds: float, *flags: str) -> Load:
    pace = ("--concurrency", in_flight, "--duration", seconds, "--warmup", 1, "--timeout-ms", 60000)
    return run_load(server, texts_file, *pace, *flags)


def _tokens(load: Load) -> float:
    return float(load["throughput"]["tokens_per_second"])
