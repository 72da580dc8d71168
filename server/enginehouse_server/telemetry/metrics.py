"""Prometheus metrics. Durations are histograms in seconds, by model and version."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import start_http_server
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from .generate_metrics import DecoderMetrics, GenerateMetrics

__all__ = ["MODEL_STATES", "Metrics", "MetricsPage", "ServedBy"]

MODEL_STATES = ("loading", "ready", "unloadable", "draining")
_LABELS = ("model", "version")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)


class ServedBy(NamedTuple):
    """An engine, as its metric has it: the runtime, the precision, and what it runs on."""

    backend: str
    precision: str
    device: str


class Metrics:
    """All metrics of the process, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            names = (*_LABELS, *labels)
            return Histogram(name, text, names, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, (*_LABELS, *labels), registry=registry)

        self.requests = counter(
            "enginehouse_requests", "Requests answered, by RPC and gRPC status code.", "rpc", "code"
        )
        self.request_seconds = histogram(
            "enginehouse_request_seconds", "From arrival to answer, by RPC.", _SECONDS, "rpc"
        )
        self.phase_seconds = histogram(
            "enginehouse_input_phase_seconds",
            "Time of one input in a phase: tokenize, queue or compute.",
            _SECONDS,
            "phase",
        )
        self.batch_size = histogram(
            "enginehouse_batch_size", "Inputs in a batch, padded rows not counted.", _BATCH_SIZES
        )
        self.tokens = counter("enginehouse_tokens", "Tokens of inputs that were computed.")
        self.padding_tokens = counter(
            "enginehouse_padding_tokens", "Tokens computed beyond those of inputs."
        )
        self.queue_inputs = Gauge(
            "enginehouse_queue_inputs", "Inputs that wait.", _LABELS, registry=registry
        )
        self.queue_tokens = Gauge(
            "enginehouse_queue_tokens", "Tokens that wait.", _LABELS, registry=registry
        )
        self.model_state = Gauge(
            "enginehouse_model_state",
            "1 for the state that a model is in.",
            (*_LABELS, "state"),
            registry=registry,
        )
        self.model_engine = Gauge(
            "enginehouse_model_engine",
            "1 for the engine that a model is served by.",
            (*_LABELS, "backend", "precision", "device"),
            registry=registry,
        )
        rpcs = Counter(
            "enginehouse_rpcs",
            "Calls ended, by RPC and gRPC status code, whether or not they reached a model.",
            ("rpc", "code"),
            registry=registry,
        )
        self._rpcs = cache(lambda rpc, code: rpcs.labels(rpc=rpc, code=code))
        self._generate = GenerateMetrics(registry)

    def rpc_ended(self, rpc: str, code: str) -> None:
        """A call ended, with a gRPC status code's name."""
        self._rpcs(rpc, code).inc()

    def of_classifier(self, model: str, version: int) -> "_ClassifierMetrics":
        """The metrics of one version of a classifier."""
        return _ClassifierMetrics(self, _labels(model, version))

    def of_decoder(self, model: str, version: int) -> DecoderMetrics:
        """The metrics of one version of a decoder."""
        labels = _labels(model, version)
        return self._generate.of_model(labels, _RequestMetrics(self, labels).request_ended)

    def set_state(self, model: str, version: int, state: str) -> None:
        """Says which state a model is in."""
        for other in MODEL_STATES:
            self.model_state.labels(model, str(version), other).set(other == state)

    def set_engine(self, model: str, version: int, engine: "ServedBy") -> None:
        """Says which engine a model is served by."""
        self.model_engine.labels(model, str(version), *engine).set(1)


class _RequestMetrics:
    """Labels are looked up once, not for every request."""

    def __init__(self, metrics: Metrics, labels: Mapping[str, str]) -> None:
        self._count = cache(lambda rpc, code: metrics.requests.labels(**labels, rpc=rpc, code=code))
        self._seconds = cache(lambda rpc: metrics.request_seconds.labels(**labels, rpc=rpc))

    def request_ended(self, rpc: str, code: str, seconds: float) -> None:
        self._count(rpc, code).inc()
        self._seconds(rpc).observe(seconds)


class _ClassifierMetrics(_RequestMetrics):
    def __init__(self, metrics: Metrics, labels: Mapping[str, str]) -> None:
        super().__init__(metrics, labels)
        phase = metrics.phase_seconds
        self._tokenize = phase.labels(**labels, phase="tokenize")
        self._queue = phase.labels(**labels, phase="queue")
        self._compute = phase.labels(**labels, phase="compute")
        self._batch_size = metrics.batch_size.labels(**labels)
        self._tokens = metrics.tokens.labels(**labels)
        self._padding = metrics.padding_tokens.labels(**labels)
        self._queue_inputs = metrics.queue_inputs.labels(**labels)
        self._queue_tokens = metrics.queue_tokens.labels(**labels)

    def input_ended(self, tokenize_s: float, queue_s: float, compute_s: float) -> None:
        self._tokenize.observe(tokenize_s)
        self._queue.observe(queue_s)
        self._compute.observe(compute_s)

    def batch_ended(self, num_rows: int, num_tokens: int, computed_tokens: int) -> None:
        self._batch_size.observe(num_rows)
        self._tokens.inc(num_tokens)
        self._padding.inc(computed_tokens - num_tokens)

    def watch_queue(self, inputs: Callable[[], int], tokens: Callable[[], int]) -> None:
        self._queue_inputs.set_function(inputs)
        self._queue_tokens.set_function(tokens)


class MetricsPage:
    """The page `/metrics` over HTTP, on a thread of its own."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Starts to listen; port 0 picks a free one.

        Raises:
            OSError: The address cannot be listened on.
        """
        self._server, self._thread = start_http_server(port, host, registry=metrics.registry)
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stops to listen."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _labels(model: str, version: int) -> dict[str, str]:
    return {"model": model, "version": str(version)}
