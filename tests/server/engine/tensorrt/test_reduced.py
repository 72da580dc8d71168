"""Logits that a plan reduces on the device: what comes back, when, and what still can."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest

from enginehouse_server.engine.create import create_decoder
from enginehouse_server.engine.decoder import (
    MOST_LOGITS,
    DecoderSpec,
    ReducingDecoder,
    StepItem,
)
from enginehouse_server.engine.graph import NUM_BEST
from enginehouse_server.engine.reduction import REDUCED, ReducedLayout
from enginehouse_server.engine.tensorrt.lower import lower_decoder
from enginehouse_server.engine.tensorrt.plan import decoder_profiles
from enginehouse_server.errors import PlanMismatchError
from tests.conftest import Decoder
from tests.fixtures.decoder_exports import DecoderExport
from tests.fixtures.driving import check_reduction, reduce_step, run_step
from tests.fixtures.trt_double import DoubleModule
from tests.fixtures.trt_double.plans import decoder_plan

VOCAB = 800
ROW = 4 * VOCAB
TOKENS = np.random.default_rng(0).integers(0, VOCAB, 90).tolist()


@pytest.fixture(scope="module")
def made(decoder: Decoder) -> DecoderExport:
    return decoder("llama")


@pytest.fixture(scope="module")
def spec(made: DecoderExport, tmp_path_factory: pytest.TempPathFactory) -> DecoderSpec:
    return decoder_plan(made.spec(), tmp_path_factory.mktemp("plan"))


@pytest.fixture
def engine(double: DoubleModule, spec: DecoderSpec) -> Iterator[ReducingDecoder]:
    with closing(create_decoder("tensorrt", spec)) as opened:
        assert isinstance(opened, ReducingDecoder)
        assert opened.limits.num_best == NUM_BEST
        yield opened


def reduced_bytes(num_rows: int) -> int:
    return ReducedLayout(num_rows, NUM_BEST).num_bytes


def test_the_best_of_a_prompt_s_last_rows_are_those_of_all_logits(
    engine: ReducingDecoder, made: DecoderExport
) -> None:
    check_reduction(
        reduce_step(engine, StepItem([1], 0, TOKENS[:40], 7, is_reduced=True)), NUM_BEST
    )
    found = reduce_step(engine, StepItem([1], 40, TOKENS[40:41], is_reduced=True))
    expected = made.original_logits(TOKENS[:41])[-1]
    np.testing.assert_allclose(found.best[0], -np.sort(-expected)[:NUM_BEST], atol=1e-4)
    check_reduction(found, NUM_BEST)


def test_steps_of_every_kind_and_number_reduce_to_what_they_are(engine: ReducingDecoder) -> None:
    for slot in range(4):
        run_step(engine, StepItem([slot], 0, TOKENS[slot : slot + 20], 0))
    for place in range(20, 32):  # by the first of which graphs are captured
        slots = range(1 + place % 4)
        items = [StepItem([s], place, TOKENS[place + s :][:1], 1, s != 1) for s in slots]
        check_reduction(reduce_step(engine, *items), NUM_BEST)


def test_only_the_best_are_copied_until_others_are_wanted(
    engine: ReducingDecoder, double: DoubleModule
) -> None:
    for slot in range(4):
        run_step(engine, StepItem([slot], 0, TOKENS[slot : slot + 20], 0))
    assert double.device.copied == [], "no logits were wanted"
    for wanted in ((), (1, 2), (0, 3)) * 3:
        double.device.copied.clear()
        items = [StepItem([s], 20, TOKENS[20:21], 1, s not in wanted) for s in range(4)]
        engine.start(items)
        found = engine.wait_reduced()
        runs = {(): [], (1, 2): [2], (0, 3): [1, 1]}[wanted]
        assert double.device.copied == [reduced_bytes(4), *(n * ROW for n in runs)]
        whole = found.fetch(0, 4)
        assert sum(double.device.copied[1:]) == 4 * ROW, "what was there is not copied again"
        found.fetch(1, 3)[:] = 0  # the caller's
        assert sum(double.device.copied[1:]) == 4 * ROW
        assert not whole[1:3].any()
    [graph] = [g for g in double.device.graphs if g.num_launches > 1]
    assert graph.num_launches == 8, "whatever is wanted, it is one graph"


def test_whoever_waits_for_all_logits_gets_them_whatever_was_said(
    engine: ReducingDecoder, made: DecoderExport
) -> None:
    found = run_step(engine, StepItem([0], 0, TOKENS[:30], 3, is_reduced=True))
    np.testing.assert_allclose(found, made.original_logits(TOKENS[:30])[-3:], atol=1e-4)


def test_more_rows_than_were_planned_for_are_reduced_too(
    made: DecoderExport, double: DoubleModule, tmp_path: Path
) -> None:
    spec = decoder_plan(made.spec(max_step_tokens=96), tmp_path)
    with closing(create_decoder("tensorrt", spec)) as engine:
        assert isinstance(engine, ReducingDecoder)
        check_reduction(
            reduce_step(engine, StepItem([0], 0, TOKENS[:80], 80, is_reduced=True)), NUM_BEST
        )
        check_reduction(
            reduce_step(engine, StepItem([0], 80, TOKENS[80:81], is_reduced=True)), NUM_BEST
        )


def test_a_plan_of_an_earlier_build_gives_all_logits(
    made: DecoderExport, double: DoubleModule, tmp_path: Path
) -> None:
    spec = decoder_plan(made.spec(), tmp_path, without=REDUCED)
    with closing(create_decoder("tensorrt", spec)) as engine:
        assert engine.limits.num_best == 0
        found = [run_step(engine, StepItem([0], i, TOKENS[i : i + 1])) for i in range(4)]
        assert double.device.copied == [ROW] * 4
    np.testing.assert_allclose(found[-1], made.original_logits(TOKENS[:4])[-1:], atol=1e-4)


def test_a_plan_that_reduces_to_something_else_is_refused(
    made: DecoderExport, double: DoubleModule, tmp_path: Path
) -> None:
    spec = decoder_plan(made.spec(), tmp_path, without=["weight_sums"])
    with pytest.raises(PlanMismatchError, match=r"reduces logits to .*best_tokens.*build the"):
        create_decoder("tensorrt", spec)


def test_a_graph_for_a_processor_is_lowered_without(made: DecoderExport, tmp_path: Path) -> None:
    spec, names = made.spec(), []
    for reduces in (True, False):
        file = tmp_path / f"{reduces}.onnx"
        lower_decoder(spec.model, file, spec.layers, spec.max_tokens, reduces=reduces)
        graph = onnx.load(file, load_external_data=False).graph
        names.append({output.name for output in graph.output})
    assert names[0] - names[1] == set(REDUCED)
    assert "logits" in names[1]


def test_however_long_a_chunk_is_few_rows_of_logits_are_planned_for(made: DecoderExport) -> None:
    prefill, decode = decoder_profiles(made.spec().layers, 4096, 4096, 300)
    for profile, most in ((prefill, MOST_LOGITS), (decode, 300)):
        [rows] = [one for one in profile.inputs if one.name == "logit_rows"]
        assert (rows.min, rows.max) == ((1,), (most,))
