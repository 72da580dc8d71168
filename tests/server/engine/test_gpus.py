from pathlib import Path

import pytest

from enginehouse_server.engine import gpus
from enginehouse_server.engine.gpus import Gpu, Gpus, find_gpus
from tests.fixtures.nvidia_smi import H100_ROW, L4_ROW, install_nvidia_smi

H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "sm90", 81559 << 20)
L4 = Gpu(1, "NVIDIA L4, rev 2", "sm89", 23034 << 20)


def test_every_gpu_is_found_with_its_driver(tmp_path: Path) -> None:
    path = install_nvidia_smi(tmp_path, H100_ROW, L4_ROW)
    assert find_gpus({"PATH": path}) == Gpus((H100, L4), "580.65.06", "13.0")


def test_without_the_tool_there_is_none_and_it_is_said_why(tmp_path: Path) -> None:
    found = find_gpus({"PATH": str(tmp_path)})
    assert (found.devices, found.driver) == ((), "")
    assert "nvidia-smi is not found" in found.obstacle


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("1", (L4,)),
        ("1,0", (L4, H100)),
        ("GPU-22", (L4,)),
        ("0,7,1", (H100,)),  # as CUDA has it: nothing after what there is none of
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("MIG-5", (H100, L4)),
    ],
)
def test_what_cuda_may_not_see_is_not_there(
    tmp_path: Path, chosen: str, expected: tuple[Gpu, ...]
) -> None:
    path = install_nvidia_smi(tmp_path, H100_ROW, L4_ROW)
    found = find_gpus({"PATH": path, "CUDA_VISIBLE_DEVICES": chosen})
    assert found.devices == expected
    assert found.driver == "580.65.06"
    assert bool(found.obstacle) == (not expected)
    if not expected:
        assert found.obstacle == f"CUDA_VISIBLE_DEVICES={chosen!r} hides all 2 of them"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("0, GPU-1, 12.1, [N/A], 580.1, NVIDIA GB10", Gpu(0, "NVIDIA GB10", "sm121", 0)),
        ("0, GPU-1, [N/A], 9, 580.1, an old one", None),
        ("No devices were found", None),
        ("", None),
    ],
)
def test_what_is_not_said_is_not_invented(tmp_path: Path, row: str, expected: Gpu | None) -> None:
    found = find_gpus({"PATH": install_nvidia_smi(tmp_path, row)})
    assert found.devices == ((expected,) if expected else ())
    if expected is None:
        assert found.obstacle.startswith("nvidia-smi lists none: " + (row or "it says nothing"))


def test_a_driver_that_does_not_answer_is_told_in_its_own_words(tmp_path: Path) -> None:
    path = install_nvidia_smi(tmp_path, "NVIDIA-SMI has failed because it is sad", code=9)
    expected = "nvidia-smi failed with 9: NVIDIA-SMI has failed because it is sad"
    assert find_gpus({"PATH": path}).obstacle == expected


def test_a_tool_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_TIMEOUT_S", 0.2)
    path = install_nvidia_smi(tmp_path, H100_ROW, sleep_s=30)
    assert "did not answer for 0.2 s" in find_gpus({"PATH": path}).obstacle


def test_a_tool_that_is_no_program_is_told(tmp_path: Path) -> None:
    path = install_nvidia_smi(tmp_path)
    (tmp_path / "nvidia-smi").write_text("#!/nowhere/sh\n")
    assert "cannot be run" in find_gpus({"PATH": path}).obstacle


@pytest.mark.parametrize(
    ("version", "expected"),
    [("| Driver Version: 590.1   CUDA UMD Version: 13.1 |", "13.1"), ("no word", "")],
)
def test_the_version_of_cuda_is_read_in_either_form(
    tmp_path: Path, version: str, expected: str
) -> None:
    path = install_nvidia_smi(tmp_path, H100_ROW, version=version)
    assert find_gpus({"PATH": path}).cuda == expected
