"""The settings as command-line flags, variables and a file: flag > variable > file > default.

Everything is read off the fields of the configuration tree, so a new field is a new flag.
"""

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import click

from .config import ConfigError, ServerConfig

__all__ = ["Setting", "config_options", "load_config", "settings", "settings_table"]

_PREFIX = "ENGINEHOUSE_"
_TYPES: dict[Any, "click.ParamType[Any, Any]"] = {
    bool: click.BOOL,
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    Path: click.Path(path_type=Path),
}


class Setting(NamedTuple):
    """One field of the tree.

    Attributes:
        section: Name of its branch; empty for the root.
        name: Of the field.
        kind: Its type.
        default: Its default.
        text: What it does.
        unit: Of its number, or empty.
    """

    section: str
    name: str
    kind: Any
    default: Any
    text: str
    unit: str

    @property
    def flag(self) -> str:
        """As on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """As in the environment."""
        return _PREFIX + self.name.upper()

    @property
    def default_text(self) -> str:
        """The default, as a person writes it; nothing of what is off or empty."""
        return "" if self.default == () or self.default is False else str(self.default)


def settings(tree: type = ServerConfig, section: str = "") -> Iterator[Setting]:
    """Every setting, in the order of the tree."""
    hints = get_type_hints(tree)
    for f in fields(tree):
        kind = hints[f.name]
        if is_dataclass(kind) and isinstance(kind, type):
            yield from settings(kind, f.name)
        else:
            yield _setting(section, f, kind)


def settings_table() -> str:
    """The settings as a Markdown table."""
    rows = ["| flag | variable | default | what |", "| --- | --- | --- | --- |"]
    for s in settings():
        default = f"`{s.default_text}`" + (f" {s.unit}" if s.unit else "") if s.default_text else ""
        rows.append(f"| `{s.flag}` | `{s.variable}` | {default} | {s.text} |")
    return "\n".join(rows)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a flag for every setting to a click command, and `--config FILE`."""
    for s in reversed(list(settings())):
        unit = f", {s.unit}" if s.unit else ""
        shown = f" [default: {s.default_text}{unit}]" if s.default_text else ""
        command = _option(s, s.text + shown)(command)
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option("--config", type=file, help="TOML file of settings, by section.")(command)


def load_config(
    flags: Mapping[str, Any], file: Path | None, variables: Mapping[str, str] = os.environ
) -> ServerConfig:
    """Puts the configuration together.

    Args:
        flags: Value by name of the field; None or an empty tuple where the flag was not given.
        file: TOML, with a table for each section; None for no file.
        variables: The environment.

    Raises:
        ConfigError: Lists all faults.
    """
    document = _read(file) if file else {}
    faults: list[str] = []
    values: dict[str, dict[str, Any]] = {"": {}}
    for s in settings():
        table = document.get(s.section, {}) if s.section else document
        given = table.pop(s.name, None) if isinstance(table, dict) else None
        value = flags.get(s.name)
        try:
            if value is None or value == ():
                value = _converted(s, variables[s.variable]) if s.variable in variables else given
            if value is not None:
                values.setdefault(s.section, {})[s.name] = _checked(s, value)
        except ValueError as error:
            faults.append(str(error))
    faults += [f"{file}: unknown setting {name}" for name in _left_over(document)]
    if faults:
        raise ConfigError("\n".join(faults))
    hints = get_type_hints(ServerConfig)
    branches = {name: hints[name](**found) for name, found in values.items() if name}
    return ServerConfig(**values[""], **branches)


def _setting(section: str, f: "Field[Any]", kind: Any) -> Setting:  # noqa: ANN401
    return Setting(section, f.name, kind, f.default, f.metadata["help"], f.metadata["unit"])


def _option(s: Setting, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    if s.kind is bool:  # None where it is not given, so that a variable or the file counts
        return click.option(s.flag, s.name, is_flag=True, default=None, help=text)
    kind = _click_type(s.kind)
    return click.option(s.flag, s.name, type=kind, multiple=_is_list(s), help=text)


def _is_list(s: Setting) -> bool:
    return get_origin(s.kind) is tuple


def _click_type(kind: Any) -> "click.ParamType[Any, Any]":  # noqa: ANN401
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    return _TYPES[get_args(kind)[0] if get_origin(kind) is tuple else kind]


def _converted(s: Setting, text: str) -> Any:  # noqa: ANN401
    """The value of a variable; several are separated by commas."""
    kind = _click_type(s.kind)
    try:
        if _is_list(s):
            return tuple(kind.convert(part, None, None) for part in text.split(",") if part)
        return kind.convert(text, None, None)
    except click.BadParameter as error:
        raise ValueError(f"{s.variable}: {error.message}") from None


def _checked(s: Setting, value: Any) -> Any:  # noqa: ANN401
    """A value from any source in the field's own type."""
    if _is_list(s) and not isinstance(value, list | tuple):
        raise ValueError(f"{s.name} must be a list, is {value!r}")
    try:
        kind = _click_type(s.kind)
        if _is_list(s):
            return tuple(kind.convert(part, None, None) for part in value)
        return kind.convert(value, None, None)
    except click.BadParameter as error:
        raise ValueError(f"{s.name}: {error.message}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as TOML: {error}") from error


def _left_over(document: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in document.items():
        found += [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
    return found
