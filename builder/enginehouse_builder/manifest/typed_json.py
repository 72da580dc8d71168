"""Frozen dataclasses to JSON and back, checked field by field against their own type hints.

Knows dataclasses of strings, numbers and bools, tuples and dicts of them, unions and literals. It
needs the standard library alone.
"""

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import TypeVar, cast, get_args, get_origin, get_type_hints

__all__ = ["MismatchError", "from_json", "to_json"]

T = TypeVar("T")


class MismatchError(ValueError):
    """JSON that does not fit the dataclass. The message says at which field."""


def to_json(value: object) -> object:
    """What JSON can hold of a dataclass: objects and lists for it and the tuples in it."""
    if is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: object, where: str) -> T:
    """A dataclass from what `to_json` made of it.

    A field with a default may be missing: a later version has more of them than an earlier wrote.

    Args:
        kind: The dataclass; its fields' types say what is valid.
        value: Parsed JSON.
        where: What the message calls the value.

    Raises:
        MismatchError: A field is missing, unknown or of the wrong type; the message says which.
    """
    return cast(T, _parse(kind, value, where))


def _parse(kind: object, value: object, where: str) -> object:
    """Builds `kind` from parsed JSON, or says at which field it does not fit."""
    if is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_from_json(kind, value, where)
    if get_origin(kind) is not None:
        return _generic_from_json(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise MismatchError(f"{where} must be {getattr(kind, '__name__', kind)}, is {value!r}")
    return value


def _generic_from_json(kind: object, value: object, where: str) -> object:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise MismatchError(f"{where} must be a list, is {value!r}")
        return _tuple_from_json(arguments, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise MismatchError(f"{where} must be an object, is {value!r}")
        return {k: _parse(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is UnionType:
        return _union_from_json(arguments, value, where)
    if value not in arguments:  # a Literal
        raise MismatchError(f"{where} must be one of {arguments}, is {value!r}")
    return value


def _tuple_from_json(kinds: tuple[object, ...], value: list[object], where: str) -> object:
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    elif len(kinds) != len(value):
        raise MismatchError(f"{where} must hold {len(kinds)} values, holds {len(value)}")
    places = enumerate(zip(kinds, value, strict=True))
    return tuple(_parse(kind, v, f"{where}[{i}]") for i, (kind, v) in places)


def _union_from_json(kinds: tuple[object, ...], value: object, where: str) -> object:
    if value is None and NoneType in kinds:
        return None
    kinds = tuple(k for k in kinds if k is not NoneType)
    if len(kinds) == 1:
        return _parse(kinds[0], value, where)
    if type(value) not in kinds:
        raise MismatchError(f"{where} must be one of {kinds}, is {value!r}")
    return value


def _dataclass_from_json(kind: type, value: object, where: str) -> object:
    if not isinstance(value, dict):
        raise MismatchError(f"{where} must be an object, is {value!r}")
    hints = get_type_hints(kind)
    required = {f.name for f in fields(kind) if f.default is MISSING}
    if missing := sorted(required - value.keys()):
        raise MismatchError(f"{where} lacks {missing}")
    if unknown := sorted(value.keys() - hints.keys()):
        raise MismatchError(f"{where} has unknown {unknown}")
    return kind(
        **{k: _parse(hint, value[k], f"{where}.{k}") for k, hint in hints.items() if k in value}
    )
