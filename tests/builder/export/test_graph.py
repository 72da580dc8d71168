from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export.graph import write_graph

EXAMPLE = {"input_ids": torch.arange(14).reshape(2, 7)}


class Tiny(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids[:, :1] * 0.0 + 1e-9


class Squeezing(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids[:, :1].squeeze().to(torch.float32).reshape(-1, 1)


class Branching(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids.float()[:, :1] * (1 if input_ids.shape[1] <= 8 else 2)


class Choosing(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids.float()[:, :1] * (1 if input_ids.sum() > 8 else 2)


class Fixed(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids.float()[:, :1] * (1 if input_ids.shape[1] == 7 else 2)


class Fourier(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        waves: Tensor = torch.fft.fftn(input_ids.float(), dim=(0, 1))
        return waves.real[:, :1]


def _run(file: Path, ids: list[list[int]]) -> NDArray[np.float32]:
    (logits,) = onnxruntime.InferenceSession(file).run(None, {"input_ids": ids})
    return np.asarray(logits)


def test_constant_near_zero_is_kept(tmp_path: Path) -> None:
    write_graph(Tiny(), EXAMPLE, tmp_path / "model.onnx", 32)
    np.testing.assert_allclose(_run(tmp_path / "model.onnx", [[1, 2, 3]]), [[1e-9]])


def test_batch_of_one_keeps_its_dimension_in_a_squeeze(tmp_path: Path) -> None:
    write_graph(Squeezing(), EXAMPLE, tmp_path / "model.onnx", 32)
    assert b"Squeeze" in (tmp_path / "model.onnx").read_bytes()
    np.testing.assert_array_equal(_run(tmp_path / "model.onnx", [[5, 2, 3]]), [[5.0]])
    np.testing.assert_array_equal(_run(tmp_path / "model.onnx", [[5], [6]]), [[5.0], [6.0]])


def test_trace_that_holds_as_far_as_rows_go_is_taken(tmp_path: Path) -> None:
    write_graph(Branching(), EXAMPLE, tmp_path / "model.onnx", 8)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Branching(), r"another way outside of lengths 0 to 8, and rows have 1 to 9 tokens"),
        (Choosing(), "takes one way or another by values"),
        (Fixed(), "fixes the number or the length of texts"),
        (Fourier(), "Fourier transform"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_holds_for_some_texts_only_is_refused(
    module: nn.Module, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        write_graph(module, EXAMPLE, tmp_path / "model.onnx", 9)
