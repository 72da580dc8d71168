"""The rules that keep the parts apart: who may import what, and what a package declares."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "enginehouse_server": ROOT / "server/enginehouse_server",
    "enginehouse_builder": ROOT / "builder/enginehouse_builder",
    "enginehouse_client": ROOT / "clients/python/enginehouse_client",
}

# Part of the server -> parts of the server that it may import. Imports point one way.
SERVER_PARTS = {
    "errors": set(),
    "config": set(),
    "options": {"config"},
    "text": {"errors"},
    "telemetry": set(),
    "engine": {"errors"},
    "sampling": {"engine", "errors"},
    "scheduler": {"engine", "sampling", "errors"},
    "tasks": {"scheduler", "sampling", "text", "engine", "telemetry", "errors"},
    "repository": {"tasks", "scheduler", "sampling", "engine", "text", "errors"},
    "rpc": {"repository", "tasks", "text", "telemetry", "config", "errors"},
}
RUNTIMES = {"openvino", "onnxruntime", "tensorrt", "pycuda", "cuda"}


def imports_of(file: Path, package: str) -> Iterator[str]:
    """Absolute names of everything that a file imports, also inside functions."""
    base = SOURCES[package].parent
    here = file.relative_to(base).with_suffix("").parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = here[: len(here) - node.level] if node.level else ()
            module = ".".join((*up, *filter(None, [node.module])))
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from names if module in SOURCES else [module]


def all_imports(package: str) -> Iterator[tuple[Path, str]]:
    for file in sorted(SOURCES[package].rglob("*.py")):
        for name in imports_of(file, package):
            yield file, name


def within(name: str, root: str) -> bool:
    return name == root or name.startswith(root + ".")


def test_the_client_imports_neither_server_nor_builder() -> None:
    for file, name in all_imports("enginehouse_client"):
        assert not within(name, "enginehouse_server"), file
        assert not within(name, "enginehouse_builder"), file


def test_the_server_takes_only_the_manifest_from_the_builder() -> None:
    for file, name in all_imports("enginehouse_server"):
        if within(name, "enginehouse_builder"):
            assert name == "enginehouse_builder.manifest", file
        assert not within(name, "enginehouse_client"), file


def test_the_server_needs_neither_torch_nor_transformers() -> None:
    for file, name in all_imports("enginehouse_server"):
        assert name.split(".")[0] not in {"torch", "transformers"}, file


@pytest.mark.parametrize("part", SERVER_PARTS)
def test_imports_within_the_server_point_one_way(part: str) -> None:
    root = SOURCES["enginehouse_server"] / part
    files = sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]
    for file in files:
        for name in imports_of(file, "enginehouse_server"):
            if within(name, "enginehouse_server"):
                other = name.split(".")[1]
                assert other == part or other in SERVER_PARTS[part], f"{file} imports {name}"


def test_grpc_and_protobuf_stay_at_the_edge() -> None:
    rpc = SOURCES["enginehouse_server"] / "rpc"
    for file, name in all_imports("enginehouse_server"):
        if name.split(".")[0] in {"grpc", "google", "enginehouse", "grpc_health"}:
            assert file.is_relative_to(rpc), f"{file} imports {name}"


def test_runtimes_stay_in_the_engine() -> None:
    engine = SOURCES["enginehouse_server"] / "engine"
    for file, name in all_imports("enginehouse_server"):
        if name.split(".")[0] in RUNTIMES:
            assert file.is_relative_to(engine), f"{file} imports {name}"


def test_the_scheduler_knows_neither_threads_of_others_nor_asyncio() -> None:
    for file in (SOURCES["enginehouse_server"] / "scheduler").rglob("*.py"):
        assert "asyncio" not in set(imports_of(file, "enginehouse_server")), file


@pytest.mark.parametrize("package", SOURCES)
def test_every_module_declares_its_names_sorted(package: str) -> None:
    for file in SOURCES[package].rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{file} has no docstring"
        declared = [
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            and any(
                isinstance(t, ast.Name) and t.id == "__all__"
                for t in (node.targets if isinstance(node, ast.Assign) else [node.target])
            )
        ]
        assert declared, f"{file} has no __all__"
        names = ast.literal_eval(declared[0])  # type: ignore[arg-type]
        assert names == sorted(names, key=lambda n: (not n.isupper(), n[0].islower(), n)), file


def test_no_file_is_longer_than_400_lines() -> None:
    for root in (*SOURCES.values(), ROOT / "tests", ROOT / "bench"):
        for file in root.rglob("*.py"):
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file
