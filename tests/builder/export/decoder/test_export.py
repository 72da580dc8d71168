import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from enginehouse_builder.errors import SpecError, UnsupportedModelError
from enginehouse_builder.export.decoder import ExportedDecoder
from enginehouse_builder.manifest import AttentionLayer, GenerationDefaults, from_json, to_json
from enginehouse_server.engine.openvino import OpenVinoDecoder
from enginehouse_server.errors import PlanMismatchError
from tests.conftest import Decoder
from tests.fixtures.checkpoints import WIDE_FAMILIES
from tests.fixtures.decoder_exports import DecoderExport, export_of
from tests.fixtures.decoders import DECODERS, WIDE_DECODERS, make_decoder
from tests.fixtures.driving import answer_greedily

TOLERANCE = 1e-4  # of the largest logit: fp32, another order of sums, some layers
NUM_TOKENS = 24


def prompts_for(made: DecoderExport) -> Sequence[list[int]]:
    """Some shorter and some longer than a window of 8 and a block of 32."""
    lengths = (3, 40, 11)
    draw = np.random.default_rng(0)
    return [draw.integers(0, made.exported.generate.vocab_size, n).tolist() for n in lengths]


def assert_says_what_the_original_says(made: DecoderExport) -> None:
    with OpenVinoDecoder(made.spec()) as engine:
        answers = answer_greedily(engine, prompts_for(made), NUM_TOKENS, chunk=7)
    for answer in answers:
        whole = [*answer.prompt, *answer.tokens]
        original = made.original_logits(whole[:-1])[len(answer.prompt) - 1 :]
        assert original.std(0).max() > 0.05  # otherwise there is nothing to get wrong
        assert answer.tokens == original.argmax(-1).tolist()
        error = np.abs(np.array(answer.rows) - original).max()
        assert error < TOLERANCE * np.abs(original).max()


@pytest.mark.parametrize("family", DECODERS)
def test_export_says_what_the_original_says(family: str, decoder: Decoder) -> None:
    assert_says_what_the_original_says(decoder(family))


@pytest.mark.wide
@pytest.mark.parametrize("family", WIDE_DECODERS)
def test_wide_export_says_what_the_original_says(family: str, tmp_path: Path) -> None:
    made = export_of(make_decoder(family, tmp_path / "original"), tmp_path / "export")
    assert_says_what_the_original_says(made)


def run_portably(made: DecoderExport, prompts: Sequence[list[int]]) -> list[NDArray[np.float32]]:
    """Logits after every token of prompts, by the bodies of the two operators alone.

    The first tokens of each come chunk by chunk into a slot of its own, the last ones of all
    sequences together.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns of updates that are not in place
    session = ort.InferenceSession(made.folder / "model.onnx", options)
    shapes = {tensor.name: tensor.shape for tensor in made.exported.inputs}
    sizes = {"batch": len(prompts), "capacity": 64}
    caches = {
        name: np.zeros([n if isinstance(n, int) else sizes[n] for n in shape], np.float32)
        for name, shape in shapes.items()
        if name.startswith("past")
    }

    def step(slots: slice, ids: NDArray[np.int64], cached: Sequence[int]) -> NDArray[np.float32]:
        places = np.array(cached, np.int32)
        feeds = {
            "input_ids": ids,
            "write_index": places,
            "kv_length": places + np.int32(ids.shape[1]),
            "logit_rows": np.arange(ids.size),
            **{name: cache[slots] for name, cache in caches.items()},
        }
        logits, *updated = session.run(None, feeds)
        for cache, new in zip(caches.values(), updated, strict=True):
            cache[slots] = cast(NDArray[np.float32], new)
        return cast(NDArray[np.float32], logits).reshape(*ids.shape, -1)

    num_last = 3
    rows: list[list[NDArray[np.float32]]] = [[] for _ in prompts]
    for i, prompt in enumerate(prompts):
        first = prompt[:-num_last]
        for chunk in (slice(0, 5), slice(5, len(first))):
            ids = np.array([first[chunk]], np.int64)
            rows[i].append(step(slice(i, i + 1), ids, [chunk.start])[0])
    lengths = np.array([len(p) - num_last for p in prompts])
    for j in range(num_last):
        ids = np.array([[p[len(p) - num_last + j]] for p in prompts])
        for i, row in enumerate(step(slice(None), ids, (lengths + j).tolist())):
            rows[i].append(row)
    return [np.concatenate(found) for found in rows]


def assert_portably_the_same(made: DecoderExport) -> None:
    prompts = [p for p in prompts_for(made) if len(p) > 8]
    for prompt, found in zip(prompts, run_portably(made, prompts), strict=True):
        original = made.original_logits(prompt)
        assert np.abs(found - original).max() < TOLERANCE * np.abs(original).max()


# Without a window, with one, with sinks and with bounded scores.
@pytest.mark.parametrize(
    "family",
    [
        *("llama", "mistral", "granite_swa", "gemma2", "bloom"),
        pytest.param("vaultgemma", marks=pytest.mark.wide),
    ],
)
def test_the_bodies_of_the_operators_say_the_same(family: str, decoder: Decoder) -> None:
    assert_portably_the_same(decoder(family))


def test_what_bounds_and_joins_the_scores_of_a_layer_is_seen(decoder: Decoder) -> None:
    capped = decoder("gemma2").exported.generate.layers
    assert [(layer.window, layer.softcap) for layer in capped] == [(8, 1.0), (0, 1.0), (8, 1.0)]
    assert not any(layer.has_sinks or layer.has_slopes for layer in capped)
    with_sinks = decoder("granite_swa").exported.generate.layers
    assert [(layer.window, layer.has_sinks) for layer in with_sinks] == [
        (8, True),
        (0, True),
        (8, True),
    ]


def test_bounded_scores_are_refused_by_paged_attention(decoder: Decoder) -> None:
    with pytest.raises(PlanMismatchError, match="the model soft-caps its attention"):
        OpenVinoDecoder(decoder("gemma2").spec())


def test_the_file_needs_nothing_but_the_standard_and_the_two_operators(decoder: Decoder) -> None:
    made = decoder("gemma3")
    model = onnx.load(made.folder / "model.onnx")
    onnx.checker.check_model(model)
    custom = [(n.domain, n.op_type) for n in model.graph.node if n.domain]
    layers = len(made.exported.generate.layers)
    assert custom.count(("enginehouse", "Attention")) == layers
    assert custom.count(("enginehouse", "CacheUpdate")) == 2 * layers
    assert len(custom) == 3 * layers
    assert {(f.domain, f.name) for f in model.functions} == set(custom)
    described = [*made.exported.inputs, *made.exported.outputs]
    for value, tensor in zip([*model.graph.input, *model.graph.output], described, strict=True):
        sizes = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        assert (value.name, sizes) == (tensor.name, tensor.shape)


def test_what_serves_it_comes_with_it(decoder: Decoder) -> None:
    made = decoder("gemma3")
    task = made.exported.generate
    assert [layer.window for layer in task.layers] == [8, 0, 8]
    assert task.layers[0] == AttentionLayer(4, 2, 8, 8, 8)
    assert made.exported.max_tokens == 96
    assert made.exported.architecture == "Gemma3ForCausalLM"
    text = made.folder / "tokenizer"
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names <= {path.name for path in text.iterdir()}
    document = json.loads(json.dumps(to_json(made.exported)))
    assert from_json(ExportedDecoder, document, "export") == made.exported


def test_generation_goes_by_the_models_own_configuration(tmp_path: Path) -> None:
    original = make_decoder("llama", tmp_path / "original")
    said = {"eos_token_id": [5, 7], "do_sample": True, "temperature": 0.7, "top_k": 20}
    (original / "generation_config.json").write_text(json.dumps(said))
    (original / "chat_template.jinja").write_text("{{ messages[0].content }}")
    made = export_of(original, tmp_path / "export", max_tokens=50)
    task = made.exported.generate
    assert made.exported.max_tokens == 50
    assert task.eos_ids == (5, 7)
    assert task.defaults == GenerationDefaults(True, 0.7, 20, None, None, None)
    assert task.has_chat_template
    text = made.folder / "tokenizer"
    assert json.loads((text / "generation_config.json").read_text()) == said
    assert (text / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_more_tokens_than_the_model_takes_are_refused(tmp_path: Path) -> None:
    original = make_decoder("gpt2", tmp_path / "original")
    with pytest.raises(SpecError, match="--max-tokens 97 is more than the 96 that the model takes"):
        export_of(original, tmp_path, max_tokens=97)
    with pytest.raises(SpecError, match="--max-tokens 1 leaves no room for an answer"):
        export_of(original, tmp_path, max_tokens=1)


# Families of the classifiers' fixtures, with what is said of them.
REFUSED = {
    "roformer": "neither all tokens before it nor",  # not configured as a decoder: sees both ways
    "diffllama": "other keys and values than it caches",
}


@pytest.mark.wide
@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_converted_is_refused_with_its_reason(family: str, tmp_path: Path) -> None:
    original = make_decoder(WIDE_FAMILIES[family], tmp_path / "original")
    with pytest.raises(UnsupportedModelError, match=f"cannot be converted: .*{REFUSED[family]}"):
        export_of(original, tmp_path / "export")
