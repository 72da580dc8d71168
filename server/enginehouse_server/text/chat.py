"""Conversations to prompts, by the template that a model ships with.

Templates are Jinja as transformers renders it: the same options, filters and functions. They come
with models and are not trusted: they run in a sandbox and see plain data alone.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from enginehouse_server.errors import InvalidRequestError, RepositoryError

__all__ = ["ChatTemplate", "Message", "read_chat_template"]

_FIELD = "prompt.chat"
_OWN_VARIABLES = frozenset({"messages", "add_generation_prompt", "tools", "documents"})
_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_END_OF_MESSAGE = "\ufdd0 "  # a noncharacter, in no text: marks where to cut


class Message(NamedTuple):
    """One message: who speaks, as the template names it, and what."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template; any thread may use it."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """Compiles a template.

        Args:
            source: The template.
            tokens: Text of special tokens by the template's name for them, such as "bos_token".

        Raises:
            RepositoryError: It is not valid Jinja.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise RepositoryError(f"the chat template is not valid: {error}") from error
        self._tokens = dict(tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt for a conversation.

        Args:
            messages: Oldest first, at least one.
            add_generation_prompt: Begin the answer of the assistant; otherwise the last message is
                continued, so the prompt ends with its text.
            variables: Further variables of the template.

        Raises:
            InvalidRequestError: The template refuses the conversation, or fails on it.
        """
        variables = variables or {}
        if taken := sorted(_OWN_VARIABLES & variables.keys()):
            field = f"{_FIELD}.template_variables"
            raise InvalidRequestError(
                f"{field} sets {taken[0]!r}, which the request itself decides: leave it out", field
            )
        plain = [{"role": m.role, "content": m.content} for m in messages]
        if not add_generation_prompt:
            plain[-1]["content"] += _END_OF_MESSAGE
        try:
            text = self._template.render(
                messages=plain,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **{**self._tokens, **variables},
            )
        except Exception as error:  # what a template does may raise anything
            raise InvalidRequestError(
                f"the model's chat template refuses {_FIELD}: {error}", _FIELD
            ) from error
        return text if add_generation_prompt else _cut_at_end_of_message(text)


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The template in a tokenizer's folder; None if it has none.

    Raises:
        RepositoryError: A file cannot be read, or is no template.
    """
    config = _read_json(folder / "tokenizer_config.json")
    file = folder / "chat_template.jinja"
    try:
        source = file.read_text(encoding="utf-8") if file.exists() else _template_in(config)
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{file} cannot be read: {error}") from error
    if source is None:
        return None
    given = {**_read_json(folder / "special_tokens_map.json"), **config}
    tokens = {name: text for name in _TOKENS if (text := _token_text(given.get(name))) is not None}
    return ChatTemplate(source, tokens)


class _Generation(Extension):
    """The block `generation`, which marks an assistant's words for training: here it is nothing."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _template_in(config: Mapping[str, object]) -> str | None:
    """The template of a tokenizer_config.json; of several named ones the default."""
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _token_text(token: object) -> str | None:
    """A special token is written as its text, or as an object with it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read_json(file: Path) -> dict[str, object]:
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{file} cannot be read as JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _cut_at_end_of_message(text: str) -> str:
    """The text up to the end of the last message."""
    mark = _END_OF_MESSAGE
    at = text.rfind(mark.strip())
    if at < 0:
        raise InvalidRequestError(
            "the model's chat template leaves the last message out, so it cannot be continued: set "
            "add_generation_prompt",
            f"{_FIELD}.add_generation_prompt",
        )
    # A template that strips messages would have stripped the space before the mark, too.
    return text[:at] if text.startswith(mark, at) else text[:at].rstrip()


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
