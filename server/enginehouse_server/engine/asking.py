"""Asks another program, of which nothing is known: it may fail, print anything, or hang."""

import subprocess
from collections.abc import Sequence

__all__ = ["ask"]


def ask(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """How the program ended, and what it printed.

    Raises:
        subprocess.TimeoutExpired: It did not end in time, and was ended.
        OSError: It cannot be run.
    """
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )
