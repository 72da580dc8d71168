"""The committed stubs work under the oldest and the newest protobuf that the package allows."""

import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_USE = """
import google.protobuf
from enginehouse.v1 import inference_service_pb2 as pb, model_service_pb2, types_pb2
import enginehouse.v1.inference_service_pb2_grpc, enginehouse.v1.model_service_pb2_grpc
request = pb.ClassifyRequest(model="m", inputs=[pb.ClassifyInput(text="t")], top_k=1)
assert pb.ClassifyRequest.FromString(request.SerializeToString()) == request
import enginehouse_client
print(google.protobuf.__version__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.31.1", "7.*"])
def test_the_stubs_import_under(version: str, tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=True)
    python = tmp_path / "bin" / "python"
    packages = (f"protobuf=={version}", "grpcio>=1.76", "googleapis-common-protos>=1.70", "click")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    paths = [str(ROOT / "proto"), str(ROOT / "clients" / "python")]
    code = f"import sys; sys.path[:0] = {paths}\n{_USE}"
    found = subprocess.run(
        [python, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(version.rstrip("*").rstrip("."))
