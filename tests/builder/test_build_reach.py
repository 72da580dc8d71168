"""Builds of a decoder whose windows or positions change where no prompt can be afforded."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from enginehouse_builder.certify import read_continuations
from enginehouse_builder.display import Display
from enginehouse_builder.errors import SpecError
from enginehouse_builder.inspect.decoder import decoder_facts
from enginehouse_builder.manifest import read_manifest
from enginehouse_builder.pipeline import build
from enginehouse_builder.reference_decoder import DecoderReference
from enginehouse_builder.resolve import resolve
from enginehouse_builder.spec import BuildSpec
from enginehouse_builder.tasks import reach
from tests.fixtures.decoders import DECODERS, make_decoder

WINDOW, MAX_TOKENS = 512, 1024


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = DECODERS["mistral"]
    sizes = {"sliding_window": WINDOW, "max_position_embeddings": MAX_TOKENS}
    family = replace(family, settings={**family.settings, **sizes})
    return make_decoder(family, tmp_path_factory.mktemp("windowed"))


@pytest.fixture
def spec(windowed: Path, cache_folder: Path, tmp_path: Path) -> BuildSpec:
    return BuildSpec(
        model=str(windowed),
        repository=tmp_path / "repository",
        cache=cache_folder,
        name="windowed",
        max_batch=2,
        certify_minutes=0,
    )


def test_a_window_that_can_be_looked_past_leaves_the_limit(spec: BuildSpec) -> None:
    folder = build(spec, Display(quiet=True)).folder
    manifest = read_manifest(folder)
    assert manifest.generate is not None
    assert (manifest.limits.max_tokens, manifest.generate.lowered) == (MAX_TOKENS, "")
    assert manifest.decoders[0].certificate.longest_prompt == WINDOW + 48


def test_a_window_that_is_too_dear_to_look_past_is_the_limit(
    spec: BuildSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "_ALWAYS_S", 1e-3)
    shown = StringIO()
    folder = build(spec, Display(console=Console(file=shown, width=400))).folder
    manifest = read_manifest(folder)
    assert manifest.generate is not None
    assert manifest.limits.max_tokens == WINDOW
    assert manifest.generate.lowered.startswith(f"{WINDOW} tokens instead of {MAX_TOKENS}")
    assert decoder_facts(manifest)["lowered to"] == manifest.generate.lowered
    assert f"sequences are limited to {manifest.generate.lowered}" in shown.getvalue()
    certified = read_continuations(folder / manifest.reference.path)
    assert certified.max_tokens == WINDOW
    assert max(len(t.prompt) + len(t.tokens) for t in certified.continuations) <= WINDOW


def test_a_cache_that_does_not_fit_is_refused_before_the_original_is_asked(
    spec: BuildSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginehouse_builder.memory.available_bytes", lambda: 751_000_000)
    with pytest.raises(SpecError, match=r"cached keys and values\), and 0.8 GB of memory are free"):
        build(spec, Display(quiet=True))


def test_the_pace_of_the_original_grows_with_what_is_read(spec: BuildSpec) -> None:
    original = DecoderReference(resolve(spec, lambda _: None), spec)
    found = original.pace(960, 60.0)
    assert found.has_cache
    assert found.token_s > 0
    assert found.step_s > found.token_s  # a token alone is dearer than one among many
    assert original.pace(960, 0.0).seconds(960, 24) > 0
