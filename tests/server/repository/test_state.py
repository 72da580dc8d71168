from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse_server.repository.state import LocalCertificate, StateFolder, Trial

TRIAL = Trial(
    "1" * 64, "2" * 64, "tensorrt 11.4.0.106", "NVIDIA H100 80GB HBM3", "580.1", "512 tokens"
)
FOUND = LocalCertificate(
    "topics version 3",
    *TRIAL,
    reference="transformers fp32",
    num_compared=12,
    max_abs_error=0.01,
    allowed=0.02,
)


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def test_what_was_kept_is_recalled_of_the_same_trial_alone(state: StateFolder) -> None:
    assert state.recall(TRIAL) is None
    state.keep(FOUND)
    assert state.recall(TRIAL) == FOUND
    for field in Trial._fields:
        assert state.recall(TRIAL._replace(**{field: "other"})) is None


@pytest.mark.parametrize(
    ("error", "expected"), [(0.02, True), (0.0201, False), (None, False), (float("nan"), False)]
)
def test_an_engine_passes_within_what_is_allowed(error: float | None, expected: bool) -> None:
    assert replace(FOUND, max_abs_error=error).is_passed == expected


@pytest.mark.parametrize("text", ["", "{}", '{"model": 1}', "\0"])
def test_a_damaged_finding_is_none_and_is_written_anew(
    text: str, state: StateFolder, caplog: pytest.LogCaptureFixture
) -> None:
    state.keep(FOUND)
    kept = state.file_of(TRIAL)
    assert kept is not None
    kept.write_text(text)
    assert state.recall(TRIAL) is None
    assert f"{kept} is not used" in caplog.text
    state.keep(FOUND)
    assert state.recall(TRIAL) == FOUND
    assert list(kept.parent.iterdir()) == [kept], "drafts do not stay"


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file")
    StateFolder(tmp_path / "state").keep(FOUND)
    assert StateFolder(tmp_path / "state").recall(TRIAL) is None
    assert str(tmp_path / "state") in caplog.text
    assert "--state-dir" in caplog.text


def test_without_a_folder_nothing_is_kept() -> None:
    state = StateFolder(None)
    state.keep(FOUND)
    assert state.recall(TRIAL) is None
    assert state.file_of(TRIAL) is None
