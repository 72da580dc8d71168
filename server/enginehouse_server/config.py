"""Every setting of the server, as one frozen tree; options.py fills it."""

import math
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "BatchingConfig",
    "ConfigError",
    "EngineConfig",
    "GenerateConfig",
    "GrpcConfig",
    "ServerConfig",
    "setting",
    "split_address",
]

_REPOSITORY = Path("repository")
_BELOW = 2**31  # gRPC keeps its numbers of bytes and of milliseconds in 32 bits


class ConfigError(Exception):
    """Settings that cannot be meant; the message lists every fault."""


def setting(default: object, text: str, unit: str = "") -> Any:  # noqa: ANN401  # as dataclasses.field
    """A field of the tree with what the command line and the README say of it."""
    return field(default=default, metadata={"help": text, "unit": unit})


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcConfig:
    """The gRPC edge."""

    listen: str = setting("127.0.0.1:50051", "Address to serve gRPC on, host:port; 0 picks a port.")
    max_message_bytes: int = setting(16 * 2**20, "Largest message in or out.", "bytes")
    keepalive_time_s: float = setting(60.0, "Ping an idle client this often.", "s")
    keepalive_timeout_s: float = setting(20.0, "Drop a client that answers no ping for this.", "s")
    min_ping_interval_s: float = setting(10.0, "How often clients may ping.", "s")
    max_connection_age_s: float = setting(
        0.0, "Ask clients to reconnect after this, for load balancers; 0 is never.", "s"
    )
    drain_delay_s: float = setting(
        0.5, "On SIGTERM, say not-serving this long before taking no new requests.", "s"
    )
    drain_timeout_s: float = setting(30.0, "Then let requests in flight take this long.", "s")
    stream_stall_timeout_s: float = setting(
        60.0, "End a stream of generated text that is not read for this.", "s"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingConfig:
    """What waits, and how batches are made."""

    max_queue: int = setting(1024, "Most inputs that wait, for each model.")
    max_queue_s: float = setting(5.0, "Refuse a request that would wait longer than this.", "s")
    batch_window: float = setting(
        0.5,
        "Share of the waiting inputs, oldest first, that a batch is chosen from: more wastes less "
        "padding, less keeps the slowest answers closer to the median.",
    )
    max_inputs: int = setting(256, "Most inputs of one request.")
    max_tokens: int = setting(0, "Lowers the longest input; 0 leaves the engine's.", "tokens")
    max_batch: int = setting(0, "Lowers the inputs of a batch; 0 leaves the engine's.")
    max_batch_tokens: int = setting(
        0,
        "Most padded tokens of a batch of several inputs, at most the engine's; 0 is what keeps "
        "the threads busy, 128 for each and at least 256, and on a GPU the engine's.",
        "tokens",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """How models that generate are served."""

    cache_memory: float = setting(
        0.0,
        "Most memory for the cached keys and values of a model; 0 is half of what is free when it "
        "is loaded, on a GPU of its own.",
        "GiB",
    )
    max_running: int = setting(0, "Lowers the sequences that run at once; 0 leaves the engine's.")
    max_sequence_tokens: int = setting(
        0, "Lowers the longest prompt and answer together; 0 leaves the engine's.", "tokens"
    )
    max_step_tokens: int = setting(
        0, "Lowers the tokens that one step computes; 0 leaves the engine's.", "tokens"
    )
    inter_token_budget_ms: float = setting(
        0.0,
        "Longest time between two tokens of a stream that the prompts of others may bring about: "
        "more starts new streams sooner, less keeps running ones even; 0 is 2.5 times what it is "
        "without prompts, and more where more prompts wait than half as many as run.",
        "ms",
    )
    max_waiting: int = setting(512, "Most sequences that wait, for each model.")
    max_wait_s: float = setting(60.0, "Refuse a request that would wait longer than this.", "s")
    max_num_sequences: int = setting(16, "Most sequences from one prompt.")
    prefix_cache: Literal["on", "off"] = setting(
        "on", "Whether what the cache has of earlier prompts is used again."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How engines run."""

    require: Literal["any", "tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"] = setting(
        "any",
        "Serve every model on this runtime or, where one cannot be, none: end with exit code 4; "
        "any is the best engine of each model that can be served here.",
    )
    threads: int = setting(0, "Processor threads of an engine; 0 is all that may be used.")
    lanes: int = setting(
        0,
        "Batches that one engine computes side by side, each on its share of the threads: more "
        "throughput, slower single answers; 0 is one for every four threads, at least two, and two "
        "on a GPU.",
    )
    cuda_binding: Literal["cuda-core", "pycuda"] = setting(
        "cuda-core",
        "What drives CUDA for engines on a GPU: NVIDIA's cuda-core, or pycuda, which has no CUDA "
        "graphs.",
    )
    hang_timeout_s: float = setting(
        120.0,
        "Longest time that an engine may take over one batch or step before it counts as hung and "
        "the server ends with exit code 3; 0 is never.",
        "s",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The whole server."""

    repository: Path = setting(_REPOSITORY, "Folder of the engine repository.")  # noqa: RUF009
    model: tuple[str, ...] = setting(
        (), "Serve only this model, NAME or NAME=VERSION; may be given several times."
    )
    version_label: tuple[str, ...] = setting(
        (), "A name for a version, NAME:LABEL=VERSION; may be given several times."
    )
    state_dir: str = setting(
        "",
        "Folder for what the server finds out about engines on this machine; empty is enginehouse "
        "in $XDG_STATE_HOME, or in ~/.local/state.",
    )
    http_listen: str = setting("127.0.0.1:8080", "Address of /metrics, host:port; 0 picks a port.")
    build_missing: bool = setting(
        False,
        "Where a model's engines leave this machine's GPU to a slower runtime, or unused, compile "
        "the better engine beside serving, as its next version.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Least level logged.")
    log_format: Literal["text", "json"] = setting("text", "Form of the log lines on stderr.")
    grpc: GrpcConfig = field(default_factory=GrpcConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ConfigError: Lists all faults.
        """
        faults = [*_address_faults(self), *_number_faults(self), *_pattern_faults(self)]
        if faults:
            raise ConfigError("\n".join(faults))

    @property
    def state_folder(self) -> Path | None:
        """Where what was found out about engines is kept; None for a user without a home."""
        try:
            if self.state_dir:
                return Path(self.state_dir).expanduser()
            home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        except RuntimeError:  # a service's user may have none
            return None
        return Path(home) / "enginehouse"

    @property
    def models(self) -> dict[str, set[int]]:
        """Versions to serve by name, 0 for the newest; no names: every model."""
        found: dict[str, set[int]] = {}
        for chosen in self.model:
            name, _, version = chosen.partition("=")
            found.setdefault(name, set()).add(int(version or 0))
        return found

    @property
    def version_labels(self) -> dict[tuple[str, str], int]:
        """Version by name and label."""
        found = {}
        for given in self.version_label:
            name, label, version = re.split("[:=]", given)
            found[name, label] = int(version)
        return found


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; the host of `[::1]:80` is `::1`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """`host:port`; a host with colons goes into brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address_faults(config: ServerConfig) -> list[str]:
    given = {"listen": config.grpc.listen, "http-listen": config.http_listen}
    pattern = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):(\d{1,5})")
    return [
        f"--{name} is {value!r}; it must be host:port with a port of 0 to 65535"
        for name, value in given.items()
        if not (m := pattern.fullmatch(value)) or int(m[2]) > 65535
    ]


def _number_faults(config: ServerConfig) -> list[str]:
    least = {"max_message_bytes": 1024, "stream_stall_timeout_s": 0.001} | dict.fromkeys(
        ("max_queue", "max_inputs", "max_waiting", "max_num_sequences"),
        1,
    )
    faults = []
    for section in (config.grpc, config.batching, config.generate, config.engine):
        for f in fields(section):
            value, flag = getattr(section, f.name), f.name.replace("_", "-")
            low = least.get(f.name, 0)
            if not isinstance(value, int | float):
                continue
            if not math.isfinite(value) or value < low:
                faults.append(f"--{flag} is {value}; it must be a finite number of at least {low}")
            elif value >= (most := _limit(f.metadata["unit"])):
                faults.append(f"--{flag} is {value}; it must be below {most}")
    if config.batching.batch_window > 1:
        faults.append(f"--batch-window is {config.batching.batch_window}; it must be at most 1")
    return faults


def _limit(unit: str) -> float:
    """What gRPC can be told, by unit; other settings of these units need no more either."""
    return {"s": _BELOW // 1000, "bytes": _BELOW}.get(unit, math.inf)


def _pattern_faults(config: ServerConfig) -> list[str]:
    patterns = {
        "model": (config.model, r"[^=:\s]+(=[1-9]\d*)?", "NAME or NAME=VERSION"),
        "version-label": (
            config.version_label,
            r"[^=:\s]+:[^=:\s]+=[1-9]\d*",
            "NAME:LABEL=VERSION",
        ),
    }
    return [
        f"--{flag} is {value!r}; it must be {form}"
        for flag, (values, pattern, form) in patterns.items()
        for value in values
        if not re.fullmatch(pattern, value)
    ]
