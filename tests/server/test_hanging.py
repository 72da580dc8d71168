from enginehouse_server.hanging import HangWatch

LIMIT_S = 10.0


def look_often(watch: HangWatch[str], since: dict[str, float | None], until: float) -> list[str]:
    """Looks every second from the last time on, and gives what was found at last."""
    found: list[str] = []
    for second in range(int(until) + 1):
        found = watch.look(since, float(second))
    return found


def test_work_that_does_not_end_is_found_and_no_sooner() -> None:
    watch: HangWatch[str] = HangWatch(LIMIT_S, 1.0)
    since = {"stuck": 0.0, "idle": None}
    assert look_often(watch, since, 9) == []
    assert watch.look(since, 10.5) == ["stuck"]


def test_an_engine_that_goes_on_never_hangs() -> None:
    watch: HangWatch[str] = HangWatch(LIMIT_S, 1.0)
    assert not any(watch.look({"busy": now - 0.5}, float(now)) for now in range(1, 60))


def test_time_in_which_nobody_looked_counts_for_little() -> None:
    watch: HangWatch[str] = HangWatch(LIMIT_S, 1.0)
    watch.look({"engine": 0.0}, 1.0)
    assert watch.look({"engine": 0.0}, 1000.0) == []
    found = [watch.look({"engine": 0.0}, 1000.0 + second) for second in range(1, 11)]
    assert found[0] == []
    assert found[-1] == ["engine"]
