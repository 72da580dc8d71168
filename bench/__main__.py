"""`python -m bench`: runs the scenarios and prints what they found."""

import platform
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import click

from enginehouse_server.engine.threads import available_threads, default_lanes

from .generation import decode_over_loop, long_prompts_beside_streams, shared_prefix
from .overload import overload
from .scenarios import SCENARIOS, Settings

__all__: list[str] = []

_GENERATE: dict[str, Callable[[Settings], Iterable[object]]] = {
    "decode": lambda settings: decode_over_loop(settings.num_pairs),
    "prefix": lambda settings: shared_prefix(settings.num_pairs),
    "long-prompts": lambda settings: long_prompts_beside_streams(4 * settings.seconds),
}


@click.command()
@click.option("--only", multiple=True, type=click.Choice([*SCENARIOS, *_GENERATE, "overload"]))
@click.option("--pairs", default=5, help="Turns of each comparison.", show_default=True)
@click.option("--seconds", default=8.0, help="Of each side of a turn.", show_default=True)
@click.option("--lanes", default=0, help="Of the server and the floor; 0: the server's default.")
@click.option("--minutes", default=10.0, help="Of the overload.", show_default=True)
@click.option("--shape", default="base", help="Of the overload.", show_default=True)
def main(
    only: tuple[str, ...], pairs: int, seconds: float, lanes: int, minutes: float, shape: str
) -> None:
    """Measure the server: Classify but for the overload, or what is named."""
    date = datetime.now(UTC).date()
    print(f"{date}, {platform.processor() or platform.machine()}, {available_threads()} threads")
    settings = Settings(pairs, seconds, lanes or default_lanes(available_threads()))
    for name in only or SCENARIOS:
        print(f"{name}:", flush=True)
        if name == "overload":
            found: Iterable[object] = overload(shape, minutes)
        elif name in _GENERATE:
            found = _GENERATE[name](settings)
        else:
            found = SCENARIOS[name](settings)
        for line in found:
            print(line, flush=True)


if __name__ == "__main__":
    main()
