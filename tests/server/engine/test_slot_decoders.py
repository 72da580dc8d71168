"""Decoders over slots, whatever runs them, against transformers and as a scheduler drives them."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from enginehouse_server.engine.create import BACKENDS, create_decoder, describe
from enginehouse_server.engine.decoder import DecoderEngine, DecoderSpec, LayerGeometry, StepItem
from enginehouse_server.engine.openvino import OpenVinoSlotDecoder
from enginehouse_server.errors import PlanMismatchError
from enginehouse_server.sampling import SamplingSettings
from enginehouse_server.scheduler import (
    Emitted,
    GeneratePolicy,
    GenerateScheduler,
    GenerateWork,
    StepFigures,
    StepPace,
)
from tests.conftest import Decoder
from tests.fixtures.attention import VOCABULARY, attend, make_tables, write_attention
from tests.fixtures.decoder_exports import DecoderExport, export_of
from tests.fixtures.decoders import DECODERS, SLOT_DECODERS, WIDE_DECODERS, make_decoder
from tests.fixtures.driving import run_step

TOLERANCE = 1e-4  # absolute; logits are around 1
VOCAB = 800
SEQUENCES = [
    np.random.default_rng(i).integers(0, VOCAB, n).tolist() for i, n in enumerate((70, 31, 90, 33))
]


def _engine(made: DecoderExport, backend: str, **settings: object) -> DecoderEngine:
    return create_decoder(backend, made.spec(**{"attention": "slots", **settings}))


class Original:
    """A model's engine, and what transformers says after each token of the sequences."""

    def __init__(self, made: DecoderExport, backend: str) -> None:
        self.engine = _engine(made, backend, max_step_tokens=96)
        self.logits = [made.original_logits(tokens) for tokens in SEQUENCES]

    def check(self, found: NDArray[np.float32], places: Sequence[tuple[int, int]]) -> None:
        """Compares with the logits after a token (sequence, place) each."""
        expected = [self.logits[sequence][place] for sequence, place in places]
        np.testing.assert_allclose(found, np.array(expected), atol=TOLERANCE)

    def prefill(self, sequence: int, slot: int, end: int, chunk: int = 96) -> None:
        for start in range(0, end, chunk):
            tokens = SEQUENCES[sequence][start : min(end, start + chunk)]
            found = run_step(self.engine, StepItem([slot], start, tokens, len(tokens)))
            self.check(found, [(sequence, start + i) for i in range(len(tokens))])


# With bounded scores and windows, without either, and with learned positions.
@pytest.fixture(
    scope="module", params=[(b, f) for b in BACKENDS for f in ("gemma2", "llama", "gpt2")], ids=str
)
def original(request: pytest.FixtureRequest, decoder: Decoder) -> Iterator[Original]:
    backend, family = request.param
    made = Original(decoder(family), backend)
    yield made
    made.engine.close()


def test_a_prompt_in_any_chunks_gets_the_originals_logits(original: Original) -> None:
    for chunk in (96, 33, 7):
        original.prefill(2, slot=1, end=90, chunk=chunk)


def test_sequences_of_any_length_decode_together_in_any_slots(original: Original) -> None:
    lengths = {0: 40, 1: 3, 2: 77, 3: 20}
    slots = {0: 2, 1: 0, 2: 3, 3: 1}
    for sequence, length in lengths.items():
        original.prefill(sequence, slots[sequence], length)
    for step in range(12):
        chosen = [(step + i) % 4 for i in range(1 + step % 4)]
        items = [
            StepItem([slots[s]], lengths[s], SEQUENCES[s][lengths[s] : lengths[s] + 1])
            for s in chosen
        ]
        original.check(run_step(original.engine, *items), [(s, lengths[s]) for s in chosen])
        for s in chosen:
            lengths[s] += 1


def test_a_slot_is_used_again_by_a_shorter_sequence(original: Original) -> None:
    original.prefill(2, slot=0, end=90)
    original.prefill(1, slot=0, end=5)
    for place in range(5, 31):
        item = StepItem([0], place, SEQUENCES[1][place : place + 1])
        original.check(run_step(original.engine, item), [(1, place)])


def test_a_copied_slot_goes_on_by_itself(original: Original) -> None:
    original.prefill(0, slot=1, end=40)
    original.engine.copy_block(1, 3)
    original.prefill(2, slot=1, end=60)
    found = run_step(original.engine, StepItem([3], 40, SEQUENCES[0][40:70], 30))
    original.check(found, [(0, place) for place in range(40, 70)])


def test_cleared_slots_hold_nothing(original: Original) -> None:
    original.prefill(0, slot=1, end=40)
    original.prefill(2, slot=3, end=40)
    original.engine.clear_blocks([1, 3])
    found = run_step(original.engine, StepItem([1], 40, SEQUENCES[0][40:41]))
    other = run_step(original.engine, StepItem([3], 40, SEQUENCES[0][40:41]))
    np.testing.assert_array_equal(found, other)


def test_the_last_position_of_the_model_is_reached(original: Original) -> None:
    limit = original.engine.limits.max_tokens
    tokens = [*SEQUENCES[2], *SEQUENCES[0]][:limit]
    run_step(original.engine, StepItem([0], 0, tokens[: limit - 2], 0))
    found = run_step(original.engine, StepItem([0], limit - 2, tokens[limit - 2 :], 2))
    run_step(original.engine, StepItem([1], 0, tokens[:60], 0))
    again = run_step(original.engine, StepItem([1], 60, tokens[60:], 2))
    np.testing.assert_allclose(found, again, atol=TOLERANCE)


def test_as_many_logits_are_given_as_are_wanted(original: Original) -> None:
    tokens = SEQUENCES[0]
    assert run_step(original.engine, StepItem([0], 0, tokens[:20], 0)).shape == (0, VOCAB)
    found = run_step(original.engine, StepItem([0], 20, tokens[20:40], 5))
    assert found.dtype == np.float32
    original.check(found, [(0, place) for place in range(35, 40)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number_stays_with_its_own_sequence(backend: str, tmp_path: Path) -> None:
    poison, checkpoint = 7, make_decoder("llama", tmp_path / "original")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.embed_tokens.weight"][poison] = np.nan
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    tokens = [t for t in SEQUENCES[0] if t != poison][:50]
    with closing(_engine(export_of(checkpoint, tmp_path / "export"), backend)) as engine:
        expected = run_step(engine, StepItem([0], 0, tokens, 50))
        found = run_step(engine, StepItem([1], 0, [3, poison] * 30))
        assert np.isnan(found).all()
        np.testing.assert_array_equal(run_step(engine, StepItem([1], 0, tokens, 50)), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "geometry",
    [
        LayerGeometry(4, 2, 16, 16, 9),
        LayerGeometry(4, 2, 16, 16, 0, softcap=2.0),
        LayerGeometry(4, 2, 16, 16, 0, has_sinks=True),
        LayerGeometry(4, 2, 16, 16, 9, has_slopes=True),
        LayerGeometry(4, 2, 16, 8, 20, softcap=3.0, has_slopes=True, has_sinks=True),
    ],
    ids=["a window", "softcap", "sinks", "slopes in a window", "all, of narrow values"],
)
def test_a_layer_attends_as_the_graph_says(
    geometry: LayerGeometry, backend: str, tmp_path: Path
) -> None:
    tables = make_tables(geometry)
    write_attention(geometry, tables, tmp_path / "model.onnx")
    spec = DecoderSpec(
        model=tmp_path / "model.onnx",
        precision="fp32",
        cache_precision="fp32",
        layers=(geometry,),
        vocab_size=geometry.num_heads * geometry.value_dim,
        max_tokens=96,
        max_step_tokens=64,
        max_sequences=2,
        cache_bytes=1 << 20,
        num_threads=1,
        attention="slots",
    )
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 70)
    with closing(create_decoder(backend, spec)) as engine:
        rows = [run_step(engine, StepItem([1], 0, tokens[:37].tolist(), 37))]
        for place in range(37, 40):
            rows.append(run_step(engine, StepItem([1], place, tokens[place : place + 1].tolist())))
        rows.append(run_step(engine, StepItem([1], 40, tokens[40:].tolist(), 30)))
    expected = attend(tokens, geometry, tables)
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_is_refused(backend: str, decoder: Decoder) -> None:
    with pytest.raises(PlanMismatchError, match="PRECISION=fp32, int8 or int4"):
        _engine(decoder("llama"), backend, precision="bf16")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_manifest_of_another_model_is_refused(backend: str, decoder: Decoder) -> None:
    made = decoder("llama")
    layers = made.spec().layers
    for wrong in (layers + layers[:1], layers[:1]):
        with pytest.raises(PlanMismatchError, match="build the model again"):
            _engine(made, backend, layers=wrong)


def test_onnxruntime_attends_over_slots_alone(decoder: Decoder) -> None:
    with pytest.raises(PlanMismatchError, match="over slots, not paged"):
        create_decoder("onnxruntime", decoder("llama").spec())


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_says_what_runs_it(backend: str, decoder: Decoder) -> None:
    device = describe(backend)
    with closing(_engine(decoder("llama"), backend)) as engine:
        assert engine.backend == backend
        assert (engine.runtime_version, engine.device) == (device.runtime_version, device.name)


def test_a_spec_says_which_attention(decoder: Decoder) -> None:
    engine = create_decoder("openvino", decoder("llama").spec(attention="slots"))
    assert isinstance(engine, OpenVinoSlotDecoder)
    assert engine.limits.num_blocks == 4
    engine.close()


class _Inbox:
    """Collects tokens until as many sequences ended as were sent."""

    def __init__(self, num_sequences: int) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.reused: dict[int, int] = {}
        self.first_token = threading.Event()
        self._left, self.is_done = num_sequences, threading.Event()

    def deliver(self, emitted: Sequence[Emitted]) -> None:
        for one in emitted:
            if one.token is not None:
                self.tokens.setdefault(one.request_id, []).append(one.token)
                self.first_token.set()
            if one.ending is not None:
                assert one.ending.error is None
                self.reused[one.request_id] = one.ending.num_cached_tokens
                self._left -= 1
        if not self._left:
            self.is_done.set()


def _answers(engine: DecoderEngine, works: Sequence[GenerateWork], late: int) -> _Inbox:
    """What a scheduler gives; the last `late` works come while the others run."""
    inbox, steps = _Inbox(len(works)), list[StepFigures]()
    policy, pace = GeneratePolicy(), StepPace({}, None)
    scheduler = GenerateScheduler(engine, None, policy, pace, inbox.deliver, steps.append)
    try:
        for work in works[: len(works) - late]:
            scheduler.submit([work])
        assert inbox.first_token.wait(20)
        for work in works[len(works) - late :]:
            scheduler.submit([work])
        assert inbox.is_done.wait(30)
    finally:
        scheduler.close(10)
    return inbox


def _works(prompts: Sequence[Sequence[int]]) -> list[GenerateWork]:
    greedy = SamplingSettings(temperature=0)
    return [
        GenerateWork(i, 0, list(p[:70]), greedy, max_new_tokens=4 + 3 * (i % 5))
        for i, p in enumerate(prompts)
    ]


def _check_family(made: DecoderExport, backend: str) -> None:
    """A scheduler's greedy answers, three of five at once, are what transformers would say."""
    vocab_size = made.exported.generate.vocab_size  # of some families less than VOCAB
    works = _works([[token % vocab_size for token in s] for s in (*SEQUENCES, [9])])
    with closing(_engine(made, backend, max_sequences=3, max_step_tokens=24)) as engine:
        found = _answers(engine, works, late=2).tokens
    for work in works:
        tokens = found[work.request_id]
        logits = made.original_logits([*work.prompt, *tokens[:-1]])[len(work.prompt) - 1 :]
        assert logits.std(0).max() > 0.05 or len(tokens) == 1  # otherwise nothing to get wrong
        assert tokens == logits.argmax(-1).tolist()


@pytest.mark.parametrize("family", [*DECODERS, *SLOT_DECODERS])
def test_a_family_on_onnxruntime_says_what_the_original_says(family: str, decoder: Decoder) -> None:
    _check_family(decoder(family), "onnxruntime")


@pytest.mark.wide
@pytest.mark.parametrize("family", WIDE_DECODERS)
def test_a_wide_family_on_onnxruntime_says_what_the_original_says(
    family: str, tmp_path: Path
) -> None:
    made = export_of(make_decoder(family, tmp_path / "original"), tmp_path / "export")
    _check_family(made, "onnxruntime")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scheduler_lets_sequences_join_and_leave_and_each_says_what_it_says_alone(
    backend: str,
    decoder: Decoder,
) -> None:
    made = decoder("llama")
    shared = SEQUENCES[0][:40]
    prompts = [*SEQUENCES[1:3], [9], [*shared, 1, 2], SEQUENCES[3], [*shared, 3], shared + [4] * 9]
    works = _works(prompts)
    with closing(_engine(made, backend, max_sequences=3, max_step_tokens=48)) as engine:
        together = _answers(engine, works, late=3)
    for work in works:
        with closing(_engine(made, backend, max_sequences=1, max_step_tokens=96)) as engine:
            assert (
                _answers(engine, [work], late=0).tokens[work.request_id]
                == together.tokens[work.request_id]
            )
    assert max(together.reused.values()) == 32, "a prefix of a whole page was there already"
