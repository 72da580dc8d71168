import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from enginehouse_builder.errors import ResolveError, SpecError, UnsupportedModelError
from enginehouse_builder.export.loading import load_tokenizer
from enginehouse_builder.export.tokens import check_tokenizer
from enginehouse_builder.reference import Reference
from enginehouse_builder.resolve import resolve
from enginehouse_server.tasks.scores import Activation, default_activation, scores
from enginehouse_server.text import TextInput, Tokenizer
from tests.builder.export.conftest import Exporting, export_of
from tests.fixtures.checkpoints import make_checkpoint


@pytest.fixture
def bert(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(checkpoint("bert"), tmp_path / "bert"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    made.mkdir()
    return made


def _edit(file: Path, **settings: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_graph_is_standard_onnx_of_any_batch_and_length(export: Exporting) -> None:
    made = export("bert")
    model = onnx.load(made.folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 20)}
    assert not model.functions
    shapes = {
        tensor.name: [d.dim_param or d.dim_value for d in tensor.type.tensor_type.shape.dim]
        for tensor in (*model.graph.input, *model.graph.output)
    }
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert shapes == {name: ["batch", "length"] for name in names} | {"logits": ["batch", 3]}
    assert [t.name for t in made.exported.inputs] == list(names)


def test_file_tells_nothing_of_the_machine_it_was_made_on(export: Exporting) -> None:
    content = (export("bert").folder / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert str(Path.home()).encode() not in content


def test_tokenizer_folder_is_complete(export: Exporting) -> None:
    files = {file.name for file in (export("bert").folder / "tokenizer").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "config.json"} <= files


def test_large_weights_go_beside_the_graph(folder: Path, tmp_path: Path) -> None:
    model = make_checkpoint("bert", tmp_path / "large", hidden_size=192, intermediate_size=768)
    export_of(model, folder)
    assert (folder / "model.onnx.data").stat().st_size > 1 << 20
    assert (folder / "model.onnx").stat().st_size < 1 << 20


def test_labels_and_problem_come_from_the_configuration(bert: Path, folder: Path) -> None:
    _edit(bert / "config.json", problem_type="multi_label_classification")
    task = export_of(bert, folder).exported.classify
    assert task.labels == ("label 0", "label 1", "label 2")
    assert task.problem == "multi_label"
    assert task.accepts_pairs


@pytest.mark.parametrize(("stated", "activation"), [(None, "sigmoid"), ("regression", "none")])
def test_one_label_scores_as_the_pipeline_of_transformers_does(
    stated: str | None, activation: Activation, folder: Path, tmp_path: Path
) -> None:
    model = make_checkpoint("distilbert", tmp_path / "one", num_labels=1, problem_type=stated)
    made = export_of(model, folder)
    assert default_activation(made.exported.classify.problem) == activation
    pipeline = transformers.pipeline("text-classification", model=str(model))
    logits = Reference(resolve(made.spec, lambda _: None), made.spec).logits([("word", None)], 96)
    expected = pipeline("word")[0]["score"]
    assert scores(logits, activation)[0, 0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("family", "limit"), [("bert", 96), ("xlm-roberta", 102), ("gpt2", 96)])
def test_longest_row_is_the_models_own(family: str, limit: int, export: Exporting) -> None:
    assert export(family).exported.max_tokens == limit


def test_fewer_tokens_may_be_asked_for(bert: Path, folder: Path) -> None:
    assert export_of(bert, folder, max_tokens=20).exported.max_tokens == 20


def test_more_tokens_than_the_model_takes_are_refused(bert: Path, folder: Path) -> None:
    with pytest.raises(SpecError, match="--max-tokens 97 is more than the 96"):
        export_of(bert, folder, max_tokens=97)


def test_too_few_tokens_for_a_text_are_refused(bert: Path, folder: Path) -> None:
    with pytest.raises(SpecError, match=r"--max-tokens 3 leaves no room .* at least 5"):
        export_of(bert, folder, max_tokens=3)


def test_checkpoint_without_a_head_is_refused(bert: Path, folder: Path) -> None:
    weights = bert / "model.safetensors"
    kept = {k: v for k, v in load_file(weights).items() if not k.startswith("classifier")}
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"lacks 2 weights .*classifier\.bias.*random"):
        export_of(bert, folder)


def test_weights_of_another_head_are_refused(bert: Path, folder: Path) -> None:
    weights = bert / "model.safetensors"
    extra = {f"crf.{name}": torch.ones(3) for name in ("start", "end")}
    save_file(load_file(weights) | extra, weights, {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"does not read: crf\.end, crf\.start; it was"):
        export_of(bert, folder)


def test_what_an_encoder_was_pretrained_with_may_be_left_over(bert: Path, folder: Path) -> None:
    weights = bert / "model.safetensors"
    left = ("cls.predictions.bias", "bert.embeddings.position_ids", "loss_fct.weight")
    save_file(
        load_file(weights) | {name: torch.ones(3) for name in left}, weights, {"format": "pt"}
    )
    assert len(export_of(bert, folder).exported.classify.labels) == 3


def test_weights_of_another_size_are_refused(bert: Path, folder: Path) -> None:
    _edit(bert / "config.json", intermediate_size=128)
    with pytest.raises((UnsupportedModelError, ResolveError), match=r"intermediate|lacks|size"):
        export_of(bert, folder)


def test_token_without_an_embedding_is_refused(bert: Path, folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    tokenizer.add_tokens(["[BEYOND]"])
    tokenizer.save_pretrained(bert)
    with pytest.raises(UnsupportedModelError, match=r"no embedding for, first '\[BEYOND\]'"):
        export_of(bert, folder)


def test_labels_that_do_not_count_from_0_are_refused(bert: Path, folder: Path) -> None:
    _edit(bert / "config.json", id2label={"1": "a", "2": "b", "3": "c"})
    with pytest.raises(UnsupportedModelError, match=r"\[1, 2, 3\] in id2label, not from 0 to 2"):
        export_of(bert, folder)


def test_tokenizer_that_does_more_than_its_file_is_refused(export: Exporting) -> None:
    made = export("bert")
    original = load_tokenizer(resolve(made.spec, lambda _: None), made.spec)
    other = export("distilbert").folder / "tokenizer"
    check_tokenizer(made.folder / "tokenizer", original, 96, pairs=True)
    with pytest.raises(UnsupportedModelError, match="does more than its tokenizer"):
        check_tokenizer(other, original, 96, pairs=True)


def test_cutting_from_the_left_is_refused(bert: Path, folder: Path) -> None:
    _edit(bert / "tokenizer_config.json", truncation_side="left")
    with pytest.raises(UnsupportedModelError, match='truncation_side="left"'):
        export_of(bert, folder)


def test_text_that_ends_like_padding_is_answered_at_its_own_end(export: Exporting) -> None:
    """GPT-2's classifier has no padding token; its end of text fills rows up."""
    made = export("gpt2")
    reference = Reference(resolve(made.spec, lambda _: None), made.spec)
    text = "Hello world<|endoftext|>"
    file = made.folder / "tokenizer" / "tokenizer.json"
    (row,) = Tokenizer(file, 96).encode([TextInput(text)])
    assert row.ids[-1] == made.exported.pad_id
    padded = [*row.ids, *[made.exported.pad_id] * 5]
    found = _run(made.folder, padded, len(row.ids))
    np.testing.assert_allclose(found, reference.logits([(text, None)], 96), atol=1e-5)


@pytest.mark.parametrize("pad", [-1, 100_000])
def test_padding_token_that_no_text_can_have_is_none(
    pad: int, checkpoint: Callable[[str], Path], tmp_path: Path, folder: Path
) -> None:
    model = Path(shutil.copytree(checkpoint("gpt2"), tmp_path / "gpt2"))
    _edit(model / "config.json", pad_token_id=pad)
    made = export_of(model, folder)
    assert made.exported.pad_id == 0
    reference = Reference(resolve(made.spec, lambda _: None), made.spec)
    ids = reference.tokenizer("Hello world")["input_ids"]
    found = _run(folder, [*ids, 0, 0], len(ids))
    np.testing.assert_allclose(found, reference.logits([("Hello world", None)], 96), atol=1e-5)


def _run(folder: Path, ids: list[int], length: int) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    mask = [1] * length + [0] * (len(ids) - length)
    (logits,) = session.run(None, {"input_ids": [ids], "attention_mask": [mask]})
    return np.asarray(logits)


def test_reference_pads_nothing_and_keeps_order(checkpoint: Callable[[str], Path]) -> None:
    from enginehouse_builder.spec import BuildSpec

    spec = BuildSpec(str(checkpoint("bert")), Path("repository"), Path("cache"))
    reference = Reference(resolve(spec, lambda _: None), spec)
    texts = [("a", None), ("Hello world", "the dog")]
    both = reference.logits(texts, 96)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(spec.model).eval()
    for i, (text, pair) in enumerate(texts):
        inputs = reference.tokenizer(text, pair, return_tensors="pt")
        with torch.no_grad():
            np.testing.assert_allclose(both[i], model(**inputs).logits[0], atol=1e-6)
