from pathlib import Path
from typing import get_args, get_type_hints

import click
import pytest
from click.testing import CliRunner

from enginehouse_server.config import (
    BatchingConfig,
    ConfigError,
    EngineConfig,
    GrpcConfig,
    ServerConfig,
    join_address,
    split_address,
)
from enginehouse_server.engine.create import ALL_BACKENDS
from enginehouse_server.options import config_options, load_config, settings, settings_table
from enginehouse_server.repository import Catalog
from enginehouse_server.rpc import GrpcServer
from enginehouse_server.telemetry import Metrics

OPERATING = Path(__file__).parents[2] / "docs/operating.md"


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("[batching]\nmax_queue = 1\nmax_inputs = 1\nmax_queue_s = 1\n")
    variables = {"ENGINEHOUSE_MAX_QUEUE": "2", "ENGINEHOUSE_MAX_INPUTS": "2"}
    found = load_config({"max_queue": 3}, file, variables).batching
    assert (found.max_queue, found.max_inputs, found.max_queue_s) == (3, 2, 1.0)
    assert found.batch_window == BatchingConfig().batch_window


def test_every_backend_can_be_required() -> None:
    assert get_args(get_type_hints(EngineConfig)["require"]) == ("any", *ALL_BACKENDS)


@pytest.mark.parametrize(
    ("flags", "variable", "file", "expected"),
    [
        ([], None, "", False),
        (["--build-missing"], "0", "", True),
        ([], "true", "build_missing = false", True),
        ([], "no", "build_missing = true", False),
        ([], None, "build_missing = true", True),
    ],
)
def test_a_setting_that_is_on_or_off_is_a_flag_without_a_value(
    tmp_path: Path, flags: list[str], variable: str | None, file: str, expected: bool
) -> None:
    (tmp_path / "server.toml").write_text(file)
    variables = {} if variable is None else {"ENGINEHOUSE_BUILD_MISSING": variable}
    found = []

    @click.command()
    @config_options
    def command(config: Path | None, **given: object) -> None:
        found.append(load_config(given, config, variables).build_missing)

    arguments = [*flags, "--config", str(tmp_path / "server.toml")]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert (result.exit_code, found) == (0, [expected])


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        ServerConfig(
            http_listen="nowhere",
            model=("=3",),
            grpc=GrpcConfig(listen="127.0.0.1:70000"),
            batching=BatchingConfig(max_queue=0, batch_window=2.0),
        )
    text = str(error.value)
    for part in ("--http-listen", "--model", "--listen", "--max-queue", "--batch-window"):
        assert part in text
    assert "70000" in text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (
            "keepalive_time_s",
            float("inf"),
            "--keepalive-time-s is inf; it must be a finite number of",
        ),
        (
            "keepalive_time_s",
            float("nan"),
            "--keepalive-time-s is nan; it must be a finite number of",
        ),
        ("keepalive_time_s", 2147483.0, "--keepalive-time-s is 2147483.0; it must be below"),
        (
            "drain_timeout_s",
            -1.0,
            "--drain-timeout-s is -1.0; it must be a finite number of at least 0",
        ),
        ("max_message_bytes", 4294967296, "--max-message-bytes is 4294967296; it must be below"),
        ("max_message_bytes", 2147483648, "it must be below 2147483648"),
        (
            "max_message_bytes",
            1023,
            "--max-message-bytes is 1023; it must be a finite number of at least",
        ),
    ],
)
def test_a_number_that_grpc_cannot_be_told_is_a_fault(name: str, value: float, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config({name: value}, None, {})
    assert text in str(error.value)


async def test_grpc_takes_the_largest_numbers_that_are_no_faults() -> None:
    config = GrpcConfig(
        listen="127.0.0.1:0",
        max_message_bytes=2**31 - 1,
        keepalive_time_s=2147482.9,
        max_connection_age_s=2147482.9,
        drain_timeout_s=2147482.9,
    )
    server = GrpcServer(config, Catalog({}, lambda _: None), Metrics())
    await server.start()
    await server.stop(0)


def test_a_model_may_be_served_in_its_newest_and_in_another_version() -> None:
    assert ServerConfig(model=("a", "a=1", "b=2")).models == {"a": {0, 1}, "b": {2}}


def test_a_bad_variable_names_itself() -> None:
    with pytest.raises(ConfigError, match=r"ENGINEHOUSE_MAX_QUEUE.*many"):
        load_config({}, None, {"ENGINEHOUSE_MAX_QUEUE": "many"})


def test_unknown_settings_of_a_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("colour = 1\n[grpc]\nlisten_on = 3\n")
    with pytest.raises(ConfigError, match=r"colour\n.*grpc\.listen_on"):
        load_config({}, file, {})


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("= =")
    with pytest.raises(ConfigError, match=r"server\.toml cannot be read as TOML"):
        load_config({}, file, {})


def test_lists_come_from_repeated_flags_commas_and_arrays(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('model = ["a", "b=2"]\n')
    assert load_config({}, file, {}).models == {"a": {0}, "b": {2}}
    assert load_config({}, file, {"ENGINEHOUSE_MODEL": "c=1,c=3"}).models == {"c": {1, 3}}
    assert load_config({"model": ("d",)}, file, {}).models == {"d": {0}}


def test_version_labels_are_by_model_and_label() -> None:
    config = ServerConfig(version_label=("topics:stable=3", "topics:next=4"))
    assert config.version_labels == {("topics", "stable"): 3, ("topics", "next"): 4}


def test_every_setting_is_a_flag_of_the_command() -> None:
    @click.command()
    @config_options
    def command(**_: object) -> None: ...

    text = CliRunner().invoke(command, ["--help"]).output
    for setting in settings():
        assert setting.flag in text


def test_flags_are_unique_and_say_what_they_do() -> None:
    found = list(settings())
    assert len({s.flag for s in found}) == len(found)
    assert all(s.text.endswith(".") for s in found)


def test_the_table_of_settings_is_current() -> None:
    assert settings_table() in OPERATING.read_text(encoding="utf-8"), settings_table()


@pytest.mark.parametrize("address", ["127.0.0.1:80", "localhost:0", "[::1]:8080", "[::]:0"])
def test_an_address_survives_being_split_and_joined(address: str) -> None:
    assert join_address(*split_address(address)) == address


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert load_config({}, None, {}).state_folder is None
    assert load_config({"state_dir": "/var/lib/x"}, None, {}).state_folder == Path("/var/lib/x")
