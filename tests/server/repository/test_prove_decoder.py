"""What the proof at load notices, of an engine whose answers a test says."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import pytest

from enginehouse_builder.manifest import DecoderEngine as BuiltDecoder
from enginehouse_builder.manifest import GenerateCertificate, TokenProbe
from enginehouse_server.engine.base import Logits
from enginehouse_server.engine.decoder import DecoderLimits, ReducedLogits, StepItem
from enginehouse_server.errors import ProbeError
from enginehouse_server.repository.prove_decoder import prove_decoder

NAN = float("nan")
CERTIFICATE = GenerateCertificate(
    *("transformers", "openvino", "0" * 64),
    *(1, 4, 8),
    *(1.0, 1.0, 0.0, 0.0, 2.0, 2.0),
    scale=10.0,
    tolerance=0.01,
)
PROBE = TokenProbe(prompt=(5, 6, 7), tokens=(2, 2, 2), top=((2, 4.0),))


class Answering:
    """Token 2 after anything, with the logit of each step."""

    backend = runtime_version = device = "answering"

    def __init__(self, *tops: float, max_tokens: int = 64) -> None:
        self._tops = iter(tops)
        self.limits = DecoderLimits(16, 8, max_tokens, 32, 4, mixes=True, shares_blocks=True)

    def start(self, items: Sequence[StepItem]) -> None:
        assert len(items) == 1

    def wait(self) -> Logits:
        return np.array([[0.0, 0.0, next(self._tops), 0.0]], np.float32)

    def copy_block(self, source: int, target: int) -> None:
        raise AssertionError

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


def built(precision: str) -> BuiltDecoder:
    return BuiltDecoder(
        *("openvino", "cpu", "model.xml", (), "1", "a processor"),
        *(precision, precision),  # type: ignore[arg-type]
        certificate=CERTIFICATE,
        probes=(PROBE,),
        step_times=(),
    )


def test_the_certified_answers_pass() -> None:
    prove_decoder(Answering(4.0, 4.0, 4.0), built("fp32"), "writer")
    prove_decoder(Answering(4.0, 4.0), built("bf16"), "writer")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tops", [(NAN,), (4.0, NAN), (5.0, 4.0, 4.0)])
def test_what_is_no_number_or_another_is_noticed_in_every_step(
    precision: str, tops: tuple[float, ...]
) -> None:
    with pytest.raises(ProbeError, match="probe 0"):
        prove_decoder(Answering(*tops), built(precision), "writer")


def test_the_last_step_counts_too() -> None:
    with pytest.raises(ProbeError, match="nan away"):
        prove_decoder(Answering(4.0, 4.0, NAN), built("fp32"), "writer")


def test_limits_that_leave_no_probe_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prove_decoder(Answering(max_tokens=5), built("fp32"), "writer")
    [record] = caplog.records
    assert "without proof that it answers as certified: its 1 probes" in record.getMessage()


class Reducing(Answering):
    """As it, and reduces four rows of logits to two each, with a fault."""

    def __init__(self, **wrong: list[object]) -> None:
        super().__init__(4.0, 4.0, 4.0)
        self.limits = dataclasses.replace(self.limits, num_best=2)
        rows = np.tile(np.array([0.0, 1.0, 4.0, 3.0], np.float32), (4, 1))
        best, tokens = rows[:, [2, 3]], np.tile(np.array([2, 3], np.int32), (4, 1))
        sums = np.exp(rows - 4).sum(axis=1)
        given = {"best": best, "tokens": tokens, "weight_sums": sums}
        for name, last in wrong.items():
            given[name][-1] = last
        self._reduced = ReducedLogits(**given, fetch=lambda begin, end: rows[begin:end])

    def wait_reduced(self) -> ReducedLogits:
        return self._reduced


def test_logits_that_are_reduced_right_pass() -> None:
    prove_decoder(Reducing(), built("fp32"), "writer")
    prove_decoder(Reducing(best=[4.0, 3.0]), built("fp32"), "writer")


@pytest.mark.parametrize(
    "wrong",
    [
        {"best": [4.0, 1.0], "tokens": [2, 1]},
        {"best": [4.5, 3.0]},
        {"tokens": [3, 2]},
        {"tokens": [2, 2], "best": [4.0, 4.0]},
        {"tokens": [2, 7]},
        {"tokens": [-2, 3]},
        {"weight_sums": 1.3},
        {"weight_sums": NAN},
    ],
    ids=str,
)
def test_logits_that_a_device_reduces_wrongly_are_noticed(wrong: dict[str, list[object]]) -> None:
    with pytest.raises(ProbeError, match="reduces logits on its device to"):
        prove_decoder(Reducing(**wrong), built("fp32"), "writer")
