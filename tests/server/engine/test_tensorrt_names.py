"""That every name of TensorRT's interface that is used exists in both flavours.

The full TensorRT's binding is on PyPI, its libraries are not: three small ones stand for them, so
that the binding can be imported and asked, by a process of its own.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from enginehouse_server.engine.tensorrt.context import _Context
from enginehouse_server.engine.tensorrt.kernels import _RuntimeCache

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "server/enginehouse_server/engine/tensorrt"
STUBS = ROOT / "tests/fixtures/trt_stubs"

# What the objects of a binding are called in the code, and what they are. Where two classes have
# one name, either may have the attribute.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "builder": ("Builder",),
    "network": ("INetworkDefinition",),
    "config": ("IBuilderConfig",),
    "parser": ("OnnxParser",),
    "error": ("ParserError",),
    "layer": ("ILayer", "IAttentionOutputLayer"),
    "attention": ("IAttention",),
    "tensor": ("ITensor",),
    "ranges": ("IOptimizationProfile",),
    "runtime": ("Runtime",),
    "engine": ("ICudaEngine",),
    "context": ("IExecutionContext",),
    "runtime_config": ("IRuntimeConfig",),
    "inspector": ("EngineInspector",),
}
# Compiling for another GPU, and kernels where a plan runs, are RTX's alone, and asked of it alone.
RTX_ONLY = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IExecutionContext.is_stream_capturable",
    "IRuntimeCache",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
}
_ASK = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
def has(name):
    found = trt
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return False
    return True
print(json.dumps([n for n in json.load(sys.stdin) if not any(map(has, n.split("|")))]))
"""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def names_used() -> Iterator[str]:
    """Names below the binding's module; alternatives with a bar between."""
    for described, own in ((_Context, "IExecutionContext"), (_RuntimeCache, "IRuntimeCache")):
        for name, method in vars(described).items():
            if not name.startswith("_") and callable(method):
                yield f"{own}.{name}"
    for file in SOURCES.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        uses_binding = "trt" in {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            first, _, rest = dotted(node).partition(".")
            if first == "trt":
                yield rest
            elif uses_binding and first in CLASSES:
                yield "|".join(f"{name}.{rest.split('.')[0]}" for name in CLASSES[first])


def missing(module: str, names: set[str], variables: Mapping[str, str]) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ASK, module],
        input=json.dumps(sorted(names)),
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    lacking: list[str] = json.loads(found.stdout)
    return lacking


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libraries that export what the binding links."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed for the stubs of TensorRT's libraries: install gcc"
    folder = tmp_path_factory.mktemp("stubs")
    for source in STUBS.glob("*.c"):
        name = f"lib{source.stem}.so.11"
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source],
            check=True,
        )
    return folder


def test_there_are_names_to_check() -> None:
    names = set(names_used())
    assert {"OnnxParser", "CausalMaskKind.LOWER_RIGHT", "IAttention.key_value_lengths"} <= names
    assert {"IRuntimeCache.deserialize", "IRuntimeConfig.set_runtime_cache"} <= names
    assert "EngineInspector.get_engine_information" in names
    assert len(names) > 30


def test_every_name_is_in_tensorrt(stubs: Path) -> None:
    names = {n for n in names_used() if not n.startswith(tuple(RTX_ONLY))}
    assert not missing("tensorrt_bindings", names, {"LD_LIBRARY_PATH": str(stubs)})


def test_every_name_is_in_tensorrt_for_rtx() -> None:
    assert not missing("tensorrt_rtx_bindings", set(names_used()), {})


def test_a_name_that_is_not_there_is_found_out(stubs: Path) -> None:
    removed = {"BuilderFlag.FP16", "ICudaEngine.device_memory_size"}
    assert set(missing("tensorrt_bindings", removed, {"LD_LIBRARY_PATH": str(stubs)})) == removed
