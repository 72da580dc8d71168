"""`python -m bench`: runs the scenarios and prints what they found."""

import platform
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import click

from enginehouse_server.engine.threads import available_threads, default_lanes

from .beside_peers import mixed_beside_peer, together_beside_peers
from .generation import decode_over_loop, long_prompts_beside_streams, shared_prefix
from .models import DECODER_SHAPES
from .overload import overload
from .scenarios import SCENARIOS, Settings
from .soak import soak_server

__all__: list[str] = []

_GENERATE: dict[str, Callable[[str, Settings], Iterable[object]]] = {
    "decode": lambda shape, s: decode_over_loop(shape, s.num_pairs),
    "prefix": lambda shape, s: shared_prefix(shape, s.num_pairs),
    "long-prompts": lambda shape, s: long_prompts_beside_streams(shape, 4 * s.seconds),
    "peers": lambda shape, s: together_beside_peers(shape, s.num_pairs),
    "mixed": lambda shape, s: mixed_beside_peer(shape, s.num_pairs, 4 * s.seconds),
}
_MINUTES = ("overload", "soak")


@click.command()
@click.option("--only", multiple=True, type=click.Choice([*SCENARIOS, *_GENERATE, *_MINUTES]))
@click.option("--pairs", default=5, help="Turns of each comparison.", show_default=True)
@click.option("--seconds", default=8.0, help="Of each side of a turn.", show_default=True)
@click.option("--lanes", default=0, help="Of the server and the floor; 0: the server's default.")
@click.option("--minutes", default=10.0, help="Of overload and soak.", show_default=True)
@click.option("--shape", default="base", help="Of the overload.", show_default=True)
@click.option(
    "--decoder",
    type=click.Choice([*DECODER_SHAPES]),
    default="qwen3",
    help="Shape that generates.",
    show_default=True,
)
def main(
    *,
    only: tuple[str, ...],
    pairs: int,
    seconds: float,
    lanes: int,
    minutes: float,
    shape: str,
    decoder: str,
) -> None:
    """Measure the server: Classify but for the overload, or what is named."""
    date = datetime.now(UTC).date()
    print(f"{date}, {platform.processor() or platform.machine()}, {available_threads()} threads")
    settings = Settings(pairs, seconds, lanes or default_lanes(available_threads()))
    for name in only or SCENARIOS:
        print(f"{name}:", flush=True)
        if name == "overload":
            found: Iterable[object] = overload(shape, minutes)
        elif name == "soak":
            found = soak_server(decoder, minutes)
        elif name in _GENERATE:
            found = _GENERATE[name](decoder, settings)
        else:
            found = SCENARIOS[name](settings)
        for line in found:
            print(line, flush=True)


if __name__ == "__main__":
    main()
