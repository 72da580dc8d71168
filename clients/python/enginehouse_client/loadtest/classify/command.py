"""`enginehouse loadtest classify`: runs a load of Classify and reports it."""

from pathlib import Path

import click

from enginehouse_client.loadtest.options import (
    COUNT,
    POSITIVE,
    Report,
    RunOptions,
    execute,
    read_lines,
    run_options,
)

from .result import LoadResult
from .run import run
from .settings import LoadSettings
from .text_report import text_report
from .texts import DEFAULT_TEXTS

__all__ = ["classify"]


@click.command()
@run_options(timeout_ms=10_000.0)
@click.option("--texts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--texts-per-request", type=COUNT, default=1, show_default=True)
@click.option("--stream", "is_streamed", is_flag=True, help="All requests over one stream.")
@click.option("--slo-ms", type=POSITIVE, help="Count as goodput what is answered within.")
def classify(
    options: RunOptions,
    *,
    texts: Path | None,
    texts_per_request: int,
    is_streamed: bool,
    slo_ms: float | None,
) -> None:
    """Send Classify requests; --concurrency or --rate says when.

    Ends after --warmup and --duration (seconds), plus at most --timeout-ms for the answers still
    due. Ctrl-C ends it early and reports what was done.
    """
    _ = options.pace  # a wrong one is found before the server is asked anything
    settings = LoadSettings(
        target=options.target,
        model=options.model_for("classify"),
        texts=DEFAULT_TEXTS if texts is None else read_lines(texts),
        version=options.version,
        texts_per_request=texts_per_request,
        warmup_s=options.warmup_s,
        duration_s=options.duration_s,
        num_requests=options.num_requests,
        timeout_s=options.timeout_ms / 1e3,
        is_streamed=is_streamed,
        seed=options.seed,
        slo_ms=slo_ms,
    )
    execute(options, lambda pace, stop: run(settings, pace, stop), _report)


def _report(result: LoadResult) -> Report:
    def html() -> str:
        from .html_report import html_report

        return html_report(result)

    return Report(lambda: text_report(result), html, result.latency_ms is not None)
