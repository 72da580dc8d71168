"""`enginehouse loadtest generate`: runs a load of Generate and reports it."""

from pathlib import Path

import click
from click.core import ParameterSource

from enginehouse_client.loadtest.options import (
    COUNT,
    POSITIVE,
    Report,
    RunOptions,
    execute,
    read_lines,
    run_options,
)

from .lengths import Lengths, parse_lengths
from .result import GenerateResult
from .run import run
from .settings import GenerateSettings
from .text_report import text_report

__all__ = ["generate"]

_SHARE = click.FloatRange(0, 1)


def _lengths(_: click.Context, __: click.Parameter, text: str | None) -> Lengths | None:
    if text is None:
        return None
    try:
        return parse_lengths(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _vocabulary(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        low, high = map(int, text.split(".."))
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no range of token ids, such as 100..30000"
        ) from error
    return low, high


@click.command()
@run_options(timeout_ms=60_000.0)
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Texts to continue, one a line, instead of random tokens.",
)
@click.option(
    "--prompt-tokens",
    metavar="SPEC",
    callback=_lengths,
    default="128",
    show_default=True,
    help="Length of random prompts.",
)
@click.option(
    "--output-tokens",
    metavar="SPEC",
    callback=_lengths,
    default="64",
    show_default=True,
    help="Length of answers. SPEC is N, A..B or lognormal:MEDIAN,SIGMA[,MAX].",
)
@click.option(
    "--shared-prefix-tokens",
    type=click.IntRange(0),
    default=0,
    help="So many tokens before a random prompt's own, the same for all that share them.",
)
@click.option(
    "--shared-fraction",
    type=_SHARE,
    default=1.0,
    show_default=True,
    help="Share of the random prompts that begin with these.",
)
@click.option(
    "--vocab",
    "vocabulary",
    metavar="LOW..HIGH",
    callback=_vocabulary,
    help="Token ids to draw from; default those that the model makes of sample texts.",
)
@click.option(
    "--distinct",
    "num_distinct",
    type=COUNT,
    default=4096,
    show_default=True,
    help="Make so many different requests before the run.",
)
@click.option("--unary", is_flag=True, help="Generate instead of GenerateStream.")
@click.option("--respect-eos", is_flag=True, help="Let answers end before their length.")
@click.option("--temperature", type=click.FloatRange(0, 100), help="Default as the model says.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Likewise.")
@click.option("--sampling-seed", type=click.IntRange(0), help="Default a new one each time.")
@click.option(
    "--cancel-fraction",
    type=_SHARE,
    default=0.0,
    help="Cancel this share of the streams, each after a random number of messages.",
)
@click.option("--slo-ttft-ms", type=POSITIVE, help="Goodput: first token within; and")
@click.option("--slo-itl-ms", type=POSITIVE, help="mean time between an answer's tokens within.")
def generate(  # noqa: PLR0913 - one for each option
    options: RunOptions,
    *,
    prompts: Path | None,
    prompt_tokens: Lengths,
    output_tokens: Lengths,
    shared_prefix_tokens: int,
    shared_fraction: float,
    vocabulary: tuple[int, int] | None,
    num_distinct: int,
    unary: bool,
    respect_eos: bool,
    temperature: float | None,
    top_p: float | None,
    sampling_seed: int | None,
    cancel_fraction: float,
    slo_ttft_ms: float | None,
    slo_itl_ms: float | None,
) -> None:
    """Send Generate requests; --concurrency or --rate says when.

    Prompts are random tokens, of a fixed length or of random ones, or texts from a file. Ends after
    --warmup and --duration (seconds), plus at most --timeout-ms for the answers still due. Ctrl-C
    ends it early and reports what was done.
    """
    given = click.get_current_context().get_parameter_source("prompt_tokens")
    if prompts is not None and given is not ParameterSource.DEFAULT:
        raise click.UsageError("--prompts and --prompt-tokens exclude each other")
    _ = options.pace  # a wrong one is found before the server is asked anything
    try:
        settings = GenerateSettings(
            target=options.target,
            model=options.model_for("generate"),
            version=options.version,
            warmup_s=options.warmup_s,
            duration_s=options.duration_s,
            num_requests=options.num_requests,
            timeout_s=options.timeout_ms / 1e3,
            seed=options.seed,
            prompts=() if prompts is None else read_lines(prompts),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            shared_prefix_tokens=shared_prefix_tokens,
            shared_fraction=shared_fraction,
            vocabulary=vocabulary,
            num_distinct=num_distinct,
            is_streamed=not unary,
            ignore_eos=not respect_eos,
            temperature=temperature,
            top_p=top_p,
            sampling_seed=sampling_seed,
            cancel_fraction=cancel_fraction,
            slo_ttft_ms=slo_ttft_ms,
            slo_itl_ms=slo_itl_ms,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    execute(options, lambda pace, stop: run(settings, pace, stop), _report)


def _report(result: GenerateResult) -> Report:
    def html() -> str:
        from .html_report import html_report

        return html_report(result)

    return Report(lambda: text_report(result), html, result.e2e_latency_ms is not None)
