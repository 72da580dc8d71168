"""`enginehouse generate`: a prompt or a conversation on the command line, text on stdout."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from enginehouse_client._base import DEFAULT_TARGET
from enginehouse_client._default_model import only_ready_model
from enginehouse_client.client import Client
from enginehouse_client.generate_messages import (
    Choices,
    JsonSchema,
    OutputOptions,
    Regex,
    Sampling,
    Stopping,
    Structure,
)

from ._conversation import converse
from ._generating import Wanted, write_answer

__all__ = ["generate"]

_CommandT = TypeVar("_CommandT", bound=Callable[..., object])


def _sampling_options(command: _CommandT) -> _CommandT:
    """The options that become `Sampling`."""
    options = [
        click.option("--temperature", type=float, help="0 takes the most likely token."),
        click.option("--top-k", type=int, help="Only so many of the most likely tokens."),
        click.option("--top-p", type=float, help="Only tokens that reach this probability."),
        click.option("--min-p", type=float, help="Only tokens of this share of the best one."),
        click.option("--repetition-penalty", type=float, help="Above 1: fewer repetitions."),
        click.option("--presence-penalty", type=float, help="Taken off tokens that were used."),
        click.option("--frequency-penalty", type=float, help="The same, for each time."),
        click.option("--seed", type=click.IntRange(min=0), help="Makes the answer repeatable."),
        click.option("--num-sequences", type=int, help="How many answers; default 1."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("prompt", required=False)
@click.option("--chat", "is_chat", is_flag=True, help="Talk: the model's chat template is used.")
@click.option("--system", help="With --chat: what the assistant is told beforehand.")
@click.option("--stream", "is_stream", is_flag=True, help="Show the text as it comes.")
@click.option("--max-new-tokens", type=int, help="Most new tokens; default as many as fit.")
@click.option("--min-new-tokens", type=int, help="No end before so many.")
@click.option("--stop", "stops", multiple=True, help="A text that ends the answer; repeatable.")
@click.option("--ignore-eos", is_flag=True, help="Go on past the model's own end.")
@_sampling_options
@click.option(
    "--json-schema",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a JSON schema that the answer must fit.",
)
@click.option("--regex", help="A pattern that the whole answer must match.")
@click.option("--choice", "choices", multiple=True, help="An answer to choose; repeatable.")
@click.option("--logprobs", type=int, help="With --json: so many likely tokens for each.")
@click.option("--echo", is_flag=True, help="Begin the text with the prompt.")
@click.option("--model", help="Name of the model; may be left out where only one serves.")
@click.option("--version", type=click.IntRange(min=1), help="Default: the newest served.")
@click.option("--version-label", help='A name for a version, such as "stable".')
@click.option("--target", default=DEFAULT_TARGET, show_default=True, help="Where the server is.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for an answer; default no limit.",
)
@click.option("--json", "as_json", is_flag=True, help="The answer, or each piece of it, as JSON.")
def generate(  # noqa: PLR0913 - one for each option
    *,
    prompt: str | None,
    is_chat: bool,
    system: str | None,
    is_stream: bool,
    max_new_tokens: int | None,
    min_new_tokens: int | None,
    stops: tuple[str, ...],
    ignore_eos: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    presence_penalty: float | None,
    frequency_penalty: float | None,
    seed: int | None,
    num_sequences: int | None,
    json_schema: Path | None,
    regex: str | None,
    choices: tuple[str, ...],
    logprobs: int | None,
    echo: bool,
    model: str | None,
    version: int | None,
    version_label: str | None,
    target: str,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Continue PROMPT with a served model, or talk to it with --chat."""
    _check_usage(prompt, is_chat=is_chat, as_json=as_json, num_sequences=num_sequences)
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        num_sequences=num_sequences,
    )
    stopping = Stopping(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        stop_strings=stops,
        ignore_eos=ignore_eos,
    )
    with Client(target, timeout_s=timeout_s) as client:
        wanted = Wanted(
            model=model or only_ready_model(client.list_models(), "generate"),
            version=version,
            version_label=version_label,
            sampling=sampling,
            stopping=stopping,
            output=OutputOptions(logprobs=logprobs, echo=echo, token_ids=as_json),
            structure=_structure(json_schema, regex, choices),
            timeout_s=timeout_s,
        )
        if is_chat:
            converse(client, wanted, prompt, system)
        else:
            write_answer(client, wanted, prompt or "", is_stream=is_stream, as_json=as_json)


def _check_usage(
    prompt: str | None, *, is_chat: bool, as_json: bool, num_sequences: int | None
) -> None:
    if prompt is None and not is_chat:
        raise click.UsageError("nothing to continue: give a prompt, or --chat to talk")
    if is_chat and (as_json or (num_sequences or 1) != 1):
        raise click.UsageError("--chat shows one answer as text: leave out --json and the number")


def _structure(
    json_schema: Path | None, regex: str | None, choices: tuple[str, ...]
) -> Structure | None:
    found: list[Structure] = []
    if json_schema is not None:
        found.append(JsonSchema(json_schema.read_text(encoding="utf-8")))
    if regex is not None:
        found.append(Regex(regex))
    if choices:
        found.append(Choices(choices))
    if len(found) > 1:
        raise click.UsageError("give one of --json-schema, --regex and --choice")
    return found[0] if found else None
