import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_builder.manifest import (
    FILE_NAME,
    AttentionLayer,
    Bucket,
    Certificate,
    ClassifyTask,
    Engine,
    File,
    Latency,
    Limits,
    Manifest,
    ManifestError,
    Plan,
    PlanProfile,
    PlanTensor,
    Probe,
    Source,
    StageTime,
    Tensor,
    TokenProbe,
    read_manifest,
    sha256_of,
    write_manifest,
)
from enginehouse_builder.manifest.typed_json import from_json, to_json

MODEL = File("model.onnx", "0" * 64, 7)
EXAMPLE = Manifest(
    model="topics",
    version=1,
    task="classify",
    classify=ClassifyTask(("a", "b"), "single_label", True, "invariant", 0),
    generate=None,
    source=Source("org/model", "abc", "1" * 64, "BertForSequenceClassification"),
    limits=Limits(64, 8, 256),
    inputs=(Tensor("input_ids", "int64", ("batch", "length")),),
    outputs=(Tensor("logits", "float32", ("batch", 2)),),
    buckets=(Bucket(8, (1, 2)), Bucket(64, (1,))),
    canonical=(MODEL,),
    text=(File("tokenizer/tokenizer.json", "2" * 64, 3),),
    reference=File("reference.json", "3" * 64, 9),
    engines=(
        Engine(
            backend="openvino",
            target="openvino",
            precision="fp32",
            model="model.onnx",
            files=(MODEL,),
            runtime_version="2026.4.1",
            device="a processor",
            certificate=Certificate("t", "o", "4" * 64, 9, 1e-6, 1e-7, 1.0, None, 2.5, 1e-3),
            probes=(Probe("text", None, (0.5, -1.0)), Probe("a", "b", (1.0, 2.0))),
            latency=(Latency(1, 8, 0.5),),
        ),
    ),
    decoders=(),
    created="2026-11-24T12:00:00+00:00",
    build=(StageTime("export", 1.5),),
    tools={"torch": "2.13.0"},
)


_PROFILE = PlanProfile("encode", (PlanTensor("input_ids", "int64", (1, 1), (8, 64), (8, 64)),))
_PLAN = Plan("tensorrt", "11.4.0.106", ("sm90",), (_PROFILE,), 0, 1 << 20, "lowered")


def _with_plan(plan: Plan | None, backend: str = "tensorrt") -> Manifest:
    engine = dataclasses.replace(
        EXAMPLE.engines[0], backend=backend, plan=plan, min_driver="580.65"
    )
    return dataclasses.replace(EXAMPLE, engines=(engine,))


def _spoiled(tmp_path: Path, **fields: Any) -> Path:  # noqa: ANN401
    """A manifest file with fields replaced; `...` removes one."""
    write_manifest(EXAMPLE, tmp_path)
    file = tmp_path / FILE_NAME
    document = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))
    return tmp_path


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_FLOAT = st.floats(allow_nan=False, allow_infinity=False)


@given(
    labels=st.lists(_TEXT, min_size=1, max_size=5),
    logits=st.lists(_FLOAT, min_size=1, max_size=5),
    text=_TEXT,
    pair=st.none() | _TEXT,
    agreement=st.none() | _FLOAT,
    version=st.integers(1, 10**9),
    tools=st.dictionaries(_TEXT, _TEXT, max_size=3),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    labels: list[str],
    logits: list[float],
    text: str,
    pair: str | None,
    agreement: float | None,
    version: int,
    tools: dict[str, str],
) -> None:
    assert EXAMPLE.classify is not None
    certificate = dataclasses.replace(EXAMPLE.engines[0].certificate, top1_agreement=agreement)
    manifest = dataclasses.replace(
        EXAMPLE,
        version=version,
        tools=tools,
        classify=dataclasses.replace(EXAMPLE.classify, labels=tuple(labels)),
        engines=(
            dataclasses.replace(
                EXAMPLE.engines[0],
                certificate=certificate,
                probes=(Probe(text, pair, tuple(logits)),),
            ),
        ),
    )
    folder = tmp_path_factory.mktemp("version")
    write_manifest(manifest, folder)
    assert read_manifest(folder) == manifest


def test_a_layer_written_before_there_was_more_to_say_of_it_is_read() -> None:
    layer = AttentionLayer(4, 2, 8, 8, window=5)
    written = to_json(layer)
    assert isinstance(written, dict)
    for later in ("softcap", "has_slopes", "has_sinks"):
        del written[later]
    assert from_json(AttentionLayer, written, "layer") == layer
    del written["window"]
    with pytest.raises(ValueError, match=r"layer lacks \['window'\]"):
        from_json(AttentionLayer, written, "layer")


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(_with_plan(_PLAN), tmp_path)
    assert read_manifest(tmp_path) == _with_plan(_PLAN)


def test_an_engine_written_before_there_were_plans_is_read() -> None:
    written = to_json(EXAMPLE.engines[0])
    assert isinstance(written, dict)
    for later in ("plan", "min_driver"):
        del written[later]
    assert from_json(Engine, written, "engine") == EXAMPLE.engines[0]


@pytest.mark.parametrize(
    ("plan", "backend", "message"),
    [
        (None, "tensorrt-rtx", "backend tensorrt-rtx with a plan of None"),
        (_PLAN, "openvino", "backend openvino with a plan of tensorrt"),
        (_PLAN, "tensorrt-rtx", "backend tensorrt-rtx with a plan of tensorrt"),
        (dataclasses.replace(_PLAN, compute_capabilities=()), "tensorrt", "no compute capab"),
        (dataclasses.replace(_PLAN, profiles=()), "tensorrt", "no profiles"),
    ],
)
def test_a_plan_that_does_not_fit_its_backend_is_refused(
    tmp_path: Path, plan: Plan | None, backend: str, message: str
) -> None:
    write_manifest(_with_plan(plan, backend), tmp_path)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path)


def test_values_of_different_types_in_one_list_are_each_checked() -> None:
    probe = TokenProbe((1, 2), (3,), ((3, 0.5), (4, -1.0)))
    document = json.loads(json.dumps(to_json(probe)))
    assert from_json(TokenProbe, document, "probe") == probe
    for junk, message in (([3], "must hold 2 values, holds 1"), ([3, "x"], r"top\[0\]\[1\]")):
        with pytest.raises(ValueError, match=message):
            from_json(TokenProbe, document | {"top": [junk]}, "probe")


_DOCUMENT = json.loads(json.dumps(to_json(EXAMPLE)))


def _places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


@given(place=st.sampled_from(_places(_DOCUMENT)), junk=st.sampled_from([{}, [[]], True, {"a": 1}]))
def test_a_field_of_another_type_is_refused_by_name(
    place: tuple[str | int, ...], junk: object
) -> None:
    document = json.loads(json.dumps(_DOCUMENT))
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    was = holder[place[-1]]
    holder[place[-1]] = junk
    # A bool for a bool and an empty object for a dictionary are no fault.
    if type(was) is type(junk) and place[0] in ("tools", "classify") and junk in (True, {}):
        return
    with pytest.raises(ValueError, match=str(place[0])):
        from_json(Manifest, document, "manifest")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"manifest_version": 2}, "version 2; this release reads 1: build"),
        ({"limits": ...}, r"lacks \['limits'\]"),
        ({"colour": "red"}, r"unknown \['colour'\]"),
        ({"model": "Not A Name"}, "does not match"),
        ({"version": 0}, "not positive"),
        ({"version": "1"}, "version must be int, is '1'"),
        ({"version": True}, "version must be int"),
        ({"task": "guess"}, r"must be one of \('classify', 'generate'\)"),
        ({"classify": None}, "classify is null"),
        ({"engines": []}, "no engines"),
        ({"buckets": []}, "no buckets"),
        ({"text": []}, r"no tokenizer\.json"),
        ({"reference": {"path": "../x", "sha256": "", "size_bytes": 1}}, "leaves the folder"),
        ({"reference": {"path": "/etc/x", "sha256": "", "size_bytes": 1}}, "leaves the folder"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_manifest(_spoiled(tmp_path, **fields))


def test_an_engine_that_nothing_proves_is_refused(tmp_path: Path) -> None:
    unproven = dataclasses.replace(EXAMPLE.engines[0], probes=())
    write_manifest(dataclasses.replace(EXAMPLE, engines=(unproven,)), tmp_path)
    with pytest.raises(ManifestError, match="engine openvino has no probes"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 100_000])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ManifestError, match=FILE_NAME):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not a published version"):
        read_manifest(tmp_path)


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(
            dataclasses.replace(EXAMPLE, build=(StageTime("x", float("nan")),)), tmp_path
        )


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file").startswith("ba7816bf")
