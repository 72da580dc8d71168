"""Experts of a decoder by themselves, as both runtimes compute them, beside a plain reference."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GptOssConfig, MixtralConfig, PretrainedConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from enginehouse_builder.errors import UnsupportedModelError
from enginehouse_builder.export.decoder.expert_products import write_out_products
from enginehouse_builder.export.decoder.experts import register_sorted_experts
from enginehouse_builder.export.graph import save_graph, silent_exporter
from enginehouse_builder.export.loading import quiet
from enginehouse_builder.export.tidy import tidy
from enginehouse_builder.quantize import WeightPrecision, quantize_weights

HIDDEN, INNER, EXPERTS, TOP_K = 64, 32, 5, 2
KINDS: Mapping[str, tuple[Callable[..., PretrainedConfig], Callable[..., nn.Module]]] = {
    "mixtral": (MixtralConfig, MixtralExperts),
    "gpt_oss": (GptOssConfig, GptOssExperts),  # lies the other way, has biases, is clamped
}
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Experts(nn.Module):
    """A transformers module of experts, with random weights, to be traced alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        config_of, experts_of = KINDS[kind]
        config = config_of(hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS)
        config._experts_implementation = register_sorted_experts()
        self.experts = experts_of(config)
        generator = torch.Generator().manual_seed(0)
        for weight in self.experts.parameters():
            weight.requires_grad_(False).normal_(0, 0.3, generator=generator)

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        answer: Tensor = self.experts(hidden, chosen, weights)
        return answer

    def reference(self, hidden: Floats, chosen: Ints, weights: Floats) -> Floats:
        """Token by token and choice by choice, as the papers write it."""
        parameters = {name: p.numpy() for name, p in self.experts.named_parameters()}
        one = _gpt_oss_expert if "down_proj_bias" in parameters else _mixtral_expert
        answers = np.zeros_like(hidden)
        for token, experts in enumerate(chosen):
            for place, expert in enumerate(experts):
                mine = {name: value[expert] for name, value in parameters.items()}
                answers[token] += weights[token, place] * one(mine, hidden[token])
        return answers


def _mixtral_expert(parameters: Mapping[str, Floats], token: Floats) -> Floats:
    gate, up = np.split(parameters["gate_up_proj"] @ token, 2)
    answer = parameters["down_proj"] @ (gate / (1 + np.exp(-gate)) * up)
    return np.asarray(answer, np.float32)


def _gpt_oss_expert(parameters: Mapping[str, Floats], token: Floats) -> Floats:
    both = token @ parameters["gate_up_proj"] + parameters["gate_up_proj_bias"]
    gate, up = np.minimum(both[::2], 7), np.clip(both[1::2], -7, 7)
    inner = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
    answer = inner @ parameters["down_proj"] + parameters["down_proj_bias"]
    return np.asarray(answer, np.float32)


class Step(NamedTuple):
    """What a step gives the experts."""

    hidden: Floats
    chosen: Ints
    weights: Floats


def _step(chosen: list[list[int]]) -> Step:
    draw = np.random.default_rng(len(chosen))
    shape = (len(chosen), HIDDEN)
    hidden = draw.normal(0, 1, shape).astype(np.float32)
    weights = draw.uniform(0.1, 1, (len(chosen), TOP_K)).astype(np.float32)
    return Step(hidden, np.array(chosen, np.int64), weights)


# Of 5 experts, 3 and 1 each stay unasked somewhere, so do all but one.
STEPS = {
    "one token": _step([[4, 0]]),
    "some asked by nobody": _step([[0, 1], [4, 0], [1, 2], [2, 0]]),
    "all tokens at one": _step([[2, 2]] * 7),
    "every one": _step([[i % 5, (3 * i + 1) % 5] for i in range(40)]),
}


def _traced(module: nn.Module) -> onnx_ir.Model:
    step = STEPS["some asked by nobody"]
    with quiet(), silent_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(torch.from_numpy(part) for part in step),
            input_names=list(Step._fields),
            output_names=["logits"],
            dynamic_shapes=[{0: "tokens"}] * 3,
            opset_version=24,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return program.model


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def file(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experts' graph."""
    model = _traced(Experts(kind))
    write_out_products(model.graph, 2)
    with silent_exporter():
        tidy(model)
    path = tmp_path_factory.mktemp(kind) / "model.onnx"
    save_graph(model, path)
    return path


Run = Callable[[Step], Floats]


def _openvino(file: Path) -> Run:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = ov.Core().compile_model(file, "CPU", settings)

    def run(step: Step) -> Floats:
        found: Floats = compiled(step._asdict())[0]
        return found

    return run


def _onnxruntime(file: Path) -> Run:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(step: Step) -> Floats:
        return np.asarray(session.run(None, step._asdict())[0], np.float32)

    return run


RUNTIMES = {"openvino": _openvino, "onnxruntime": _onnxruntime}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_token_gets_what_its_experts_say(kind: str, file: Path, runtime: str) -> None:
    run, experts = RUNTIMES[runtime](file), Experts(kind)
    for name, step in STEPS.items():
        expected = experts.reference(*step)
        assert np.abs(run(step) - expected).max() < 1e-5 * np.abs(expected).max(), name


def test_what_is_not_traced_says_the_same(kind: str) -> None:
    experts = Experts(kind)
    for name, step in STEPS.items():
        found = experts(*(torch.from_numpy(part) for part in step)).numpy()
        expected = experts.reference(*step)
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max(), name


def test_the_graph_has_a_matrix_for_each_expert_and_no_operator_of_its_own(file: Path) -> None:
    graph = onnx.load(file).graph
    assert {node.domain for node in graph.node} == {""}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    wanted = [(HIDDEN, 2 * INNER)] * EXPERTS + [(INNER, HIDDEN)] * EXPERTS
    assert [shapes[node.input[1]] for node in products] == wanted
    assert not [shape for shape in shapes.values() if len(shape) == 3]  # none is kept twice


@pytest.mark.parametrize(("precision", "most"), [("int8", 0.03), ("int4", 0.3)])
def test_rounded_experts_stay_rounded_and_say_nearly_the_same(
    kind: str, file: Path, tmp_path: Path, precision: WeightPrecision, most: float
) -> None:
    target = tmp_path / "rounded" / "model.onnx"
    found = quantize_weights(file, target, precision, lambda _: None)
    assert found.num_int8 + found.num_int4 >= 2 * EXPERTS
    assert found.target_bytes < found.source_bytes / 2
    runs = [make(target) for make in RUNTIMES.values()]
    for step in STEPS.values():
        exact = Experts(kind).reference(*step)
        answers = [run(step) for run in runs]
        assert 0 < np.abs(answers[0] - exact).max() < most * np.abs(exact).max()
        assert np.abs(answers[0] - answers[1]).max() < 1e-5 * np.abs(exact).max()


def test_openvino_multiplies_by_the_rounded_weights_themselves(file: Path, tmp_path: Path) -> None:
    quantize_weights(file, tmp_path / "model.onnx", "int8", lambda _: None)
    compiled = ov.Core().compile_model(tmp_path / "model.onnx", "CPU", {"PERF_COUNT": True})
    request = compiled.create_infer_request()
    request.infer(STEPS["every one"]._asdict())
    kinds = [node.node_type for node in request.profiling_info]
    assert kinds.count("FullyConnectedCompressed") == 2 * EXPERTS


def test_experts_that_are_missing_in_the_trace_are_noticed(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"of the 4 products .* 2 are in its graph"):
        write_out_products(_traced(Experts(kind)).graph, 4)
