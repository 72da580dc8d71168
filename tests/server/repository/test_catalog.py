import pytest

from enginehouse_server.errors import (
    EnginehouseError,
    InvalidRequestError,
    ModelNotFoundError,
    NotReadyError,
    UnloadableError,
)
from enginehouse_server.repository import Catalog, Entry
from enginehouse_server.repository.catalog import ModelState


def catalog(*entries: Entry, labels: dict[tuple[str, str], int] | None = None) -> Catalog:
    made = Catalog(labels or {}, lambda _: None)
    for entry in entries:
        made.put(entry)
    return made


@pytest.mark.parametrize(
    ("state", "kind"),
    [("loading", NotReadyError), ("draining", NotReadyError), ("unloadable", UnloadableError)],
)
def test_only_what_may_become_ready_is_worth_another_try(
    state: ModelState, kind: type[EnginehouseError]
) -> None:
    found = catalog(Entry("topics", 3, state, "so it is"))
    with pytest.raises(kind, match=f"model 'topics' version 3 is {state}: so it is") as error:
        found.classifier("topics", None, None)
    assert type(error.value) is kind


def test_without_a_version_the_newest_is_meant() -> None:
    found = catalog(*(Entry("topics", version, "loading") for version in (2, 10, 9)))
    assert found.find("topics").version == 10
    assert [e.version for e in found] == [10, 9, 2]


def test_a_label_is_a_version() -> None:
    found = catalog(Entry("topics", 1, "loading"), labels={("topics", "stable"): 1})
    with pytest.raises(NotReadyError, match="version 1 is loading"):
        found.classifier("topics", None, "stable")
    with pytest.raises(InvalidRequestError, match="both set"):
        found.classifier("topics", 1, "stable")


def test_an_unknown_label_is_told_from_an_unknown_model() -> None:
    entries = Entry("topics", 1, "loading"), Entry("plain", 1, "loading")
    found = catalog(*entries, labels={("topics", "stable"): 1, ("topics", "next"): 2})
    for model, message in {
        "nobody": "no model 'nobody'; served here: plain, topics",
        "topics": "has no version label 'x'; it has: next, stable",
        "plain": "has no version label 'x'; it has: none",
    }.items():
        with pytest.raises(ModelNotFoundError, match=message):
            found.classifier(model, None, "x")


def test_a_label_of_a_version_that_is_not_served_is_not_found() -> None:
    found = catalog(Entry("topics", 1, "loading"), labels={("topics", "next"): 2})
    with pytest.raises(ModelNotFoundError, match="has no version 2; it has: 1"):
        found.classifier("topics", None, "next")
