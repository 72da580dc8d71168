"""Logs on stderr: readable lines, or one JSON object a line for machines."""

import json
import logging
import sys
from datetime import UTC, datetime

__all__ = ["configure_logs"]

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_GRPC = "grpc._cython.cygrpc"
_CALLER_LEFT = "ExecuteBatchError"  # an answer that could not be sent


def configure_logs(level: str, form: str) -> None:
    """Sends all logs to stderr.

    Args:
        level: "debug", "info", "warning" or "error".
        form: "text", or "json".
    """
    target = logging.StreamHandler(sys.stderr)
    target.setFormatter(_JsonLines() if form == "json" else _TextLines())
    logging.basicConfig(level=level.upper(), handlers=[target], force=True)
    logging.getLogger(_GRPC).addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record of gRPC's is more than a caller that left just before its answer came."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != _CALLER_LEFT


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {k: v for k, v in vars(record).items() if k not in _OWN_FIELDS}


class _TextLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        extras = " ".join(f"{k}={v}" for k, v in _extras(record).items())
        return f"{text} {extras}" if extras else text


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)
