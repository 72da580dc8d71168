import os
from pathlib import Path

import pytest

from enginehouse_server.engine import threads


class Machine:
    """The kernel's files as a test writes them, on a machine of sixteen threads."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        monkeypatch.setattr(threads, "_MEMBERSHIP", folder / "membership")
        monkeypatch.setattr(threads, "_GROUPS", folder / "cgroup")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))

    def write(self, path: str, text: str) -> None:
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("max 100000", 16),
        ("nonsense", 16),
    ],
)
def test_a_quota_lowers_the_threads(machine: Machine, text: str, expected: int) -> None:
    machine.write("cgroup/cpu.max", text)
    assert threads.available_threads() == expected


def test_the_quota_is_that_of_the_process_s_own_group(machine: Machine) -> None:
    machine.write("membership", "0::/system.slice/enginehouse.service\n")
    machine.write("cgroup/system.slice/enginehouse.service/cpu.max", "300000 100000")
    machine.write("cgroup/other.slice/cpu.max", "100000 100000")
    assert threads.available_threads() == 3


@pytest.mark.parametrize(("own", "expected"), [("max", 4), ("200000", 2), ("800000", 4)])
def test_a_group_around_it_bounds_it_too(machine: Machine, own: str, expected: int) -> None:
    machine.write("membership", "0::/kubepods/pod/container\n")
    machine.write("cgroup/kubepods/cpu.max", "max 100000")
    machine.write("cgroup/kubepods/pod/cpu.max", "400000 100000")
    machine.write("cgroup/kubepods/pod/container/cpu.max", f"{own} 100000")
    assert threads.available_threads() == expected


def test_a_container_may_show_its_own_group_as_the_root(machine: Machine) -> None:
    machine.write("membership", "0::/docker/0123abcd\n")
    machine.write("cgroup/cpu.max", "500000 100000")
    assert threads.available_threads() == 5


@pytest.mark.parametrize(("quota", "expected"), [("600000", 6), ("-1", 16)])
def test_groups_of_version_1_count(machine: Machine, quota: str, expected: int) -> None:
    machine.write("membership", "4:memory:/job\n3:cpu,cpuacct:/job\n1:cpuset:/\n")
    machine.write("cgroup/cpu/job/cpu.cfs_quota_us", quota)
    machine.write("cgroup/cpu/job/cpu.cfs_period_us", "100000")
    machine.write("cgroup/job/cpu.max", "100000 100000")
    assert threads.available_threads() == expected


def test_without_a_group_the_affinity_counts(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert threads.available_threads() == 3
