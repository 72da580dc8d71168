"""Other engines of generation: installed in environments of their own, with the same weights.

A peer is asked as the server is, by a workload, but in its own process and without a network.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from .models import FOLDER, checkpoint_of
from .processes import Process
from .workload import Replayed, Request

__all__ = ["ONNXRUNTIME_GENAI", "OPENVINO_GENAI", "Peer", "PeerError", "PeerProcess"]

_TORCH = "torch==2.13.0"  # pip takes its CPU build where one is offered, and then leaves it alone


class PeerError(Exception):
    """A peer cannot be installed, or does not take the model; the message says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer.

    Attributes:
        name: Of its environment's folder, and of its module `bench/peer_<name>.py`.
        packages: What pip installs, torch aside, in versions that go together.
        unwanted: What comes with these, but does not go with torch's CPU build or reports usage.
        conversion: The command that converts a checkpoint, from it, from the folder to write and
            from the folder of the environment's programs.
    """

    name: str
    packages: Sequence[str]
    unwanted: Sequence[str]
    conversion: Callable[[Path, Path, Path], Sequence[str | Path]]

    @property
    def folder(self) -> Path:
        """All that is kept of it."""
        return FOLDER / f"peers-{self.name}"

    @property
    def programs(self) -> Path:
        """Of its environment."""
        return self.folder / "venv/bin"


OPENVINO_GENAI = Peer(
    "openvino_genai",
    (
        *("optimum-intel[openvino]==2.2.0", "transformers==5.5.0"),
        *("openvino==2026.4.1", "openvino-genai==2026.4.1.0"),
    ),
    ("torchvision", "openvino-telemetry"),
    lambda checkpoint, folder, programs: (
        *(programs / "optimum-cli", "export", "openvino", "--model", checkpoint),
        *("--task", "text-generation-with-past", "--weight-format", "int8", folder),
    ),
)
ONNXRUNTIME_GENAI = Peer(
    "onnxruntime_genai",
    (
        *("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0"),
        *("onnx==1.23.2", "onnx-ir==1.1.0", "transformers==5.23.0"),
    ),
    (),
    lambda checkpoint, folder, programs: (
        *(programs / "python", "-m", "onnxruntime_genai.models.builder", "-i", checkpoint),
        *("-o", folder, "-p", "int8", "-e", "cpu", "-c", folder.with_name("downloads")),
    ),
)


class PeerProcess(Process):
    """A peer with its own form of a checkpoint, int8 weights."""

    def __init__(self, peer: Peer, shape: str, num_threads: int) -> None:
        """Installs it and converts the model, where an earlier run has not.

        Raises:
            PeerError: If either fails.
        """
        _install(peer)
        model = _converted(peer, shape)
        script = Path(__file__).with_name(f"peer_{peer.name}.py")
        super().__init__(script, model, str(num_threads), python=peer.programs / "python")
        self.name = peer.name

    def __enter__(self) -> Self:
        try:
            return super().__enter__()
        except RuntimeError as error:
            raise PeerError(f"{self.name} did not start: {error}") from None

    def replay(self, requests: Sequence[Request]) -> Replayed:
        """When the tokens came of requests that it got when they were due."""
        answer = json.loads(self.ask(json.dumps([asdict(request) for request in requests])))
        return Replayed(requests, answer)


def _install(peer: Peer) -> None:
    installed = peer.folder / "installed.txt"
    wanted = "\n".join((_TORCH, *peer.packages))
    if installed.exists() and installed.read_text() == wanted:
        return
    print(f"installing {peer.name}", flush=True)
    shutil.rmtree(peer.folder, ignore_errors=True)
    peer.folder.mkdir(parents=True)
    pip = (peer.programs / "python", "-m", "pip", "--quiet")
    _run(peer, sys.executable, "-m", "venv", peer.folder / "venv")
    _run(peer, *pip, "install", _TORCH)
    _run(peer, *pip, "install", _TORCH, *peer.packages)
    if peer.unwanted:
        _run(peer, *pip, "uninstall", "--yes", *peer.unwanted)
    installed.write_text(wanted)


def _converted(peer: Peer, shape: str) -> Path:
    folder, unfinished = peer.folder / f"{shape}-int8", peer.folder / "unfinished"
    if not folder.exists():
        print(f"converting {shape} for {peer.name}", flush=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        checkpoint = _with_an_end(checkpoint_of(shape), peer.folder / "checkpoint")
        _run(peer, *peer.conversion(checkpoint, unfinished, peer.programs))
        unfinished.rename(folder)
    return folder


def _with_an_end(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with an end of sequence, which converters want and nothing here produces."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    for name in ("config.json", "generation_config.json"):
        found = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        found["eos_token_id"] = config["vocab_size"] - 1
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(found), encoding="utf-8")
    return folder


def _run(peer: Peer, *command: str | Path) -> None:
    variables = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    found = subprocess.run(
        [*map(str, command)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        said = [line for line in found.stderr.splitlines() if line.strip()]
        last = said[-1] if said else f"exit code {found.returncode}"
        raise PeerError(f"{peer.name}: {' '.join(map(str, command))}: {last}")
