import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from enginehouse_server.errors import InvalidRequestError, RepositoryError
from enginehouse_server.text import ChatTemplate, Message, read_chat_template
from tests.fixtures.vocabularies import save_tokenizer

CHATML = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
BRACKETS = """{{ bos_token }}{% for m in messages %}
    {% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}
    {% endif %}
    {% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}
    {% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + eos_token }}{% endif %}
{% endfor %}"""
NAMESPACES = """{%- set ns = namespace(count=0) %}{% for m in messages %}
{%- if m.role == 'tool' %}{% continue %}{% endif %}{% set ns.count = ns.count + 1 %}
{{- "<|header|>%s %d<|end_header|>\\n\\n" | format(m.role, ns.count) + m.content | trim }}
{%- generation %}{{ eos_token }}{% endgeneration %}
{% endfor %}{{ {"a": "<b> & 'é'", "n": [1, 2.5, none]} | tojson }}
{{- {"k": 1} | tojson(indent=2) }}{% if add_generation_prompt %}<|header|>assistant{% endif %}"""
PLAIN_JSON = """{{ strftime_now('%Y') | length }}{{ tools is none }}{{ documents is none }}
{{ dict(a=1)['a'] }}{% for m in messages[1:] %}{{ m | tojson }}{% break %}{% endfor %}"""
CHAT = [
    Message("user", "  What is <1 & 2>? "),
    Message("assistant", "Three."),
    Message("user", "Größe 😀\nagain "),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer("byte_fallback", tmp_path)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "__type": "AddedToken", "special": True},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def put(folder: Path, template: str) -> ChatTemplate:
    (folder / "chat_template.jinja").write_text(template)
    found = read_chat_template(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("template", [CHATML, BRACKETS, NAMESPACES, PLAIN_JSON])
def test_templates_render_as_transformers_renders_them(folder: Path, template: str) -> None:
    from transformers import PreTrainedTokenizerFast

    ours = put(folder, template)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
    )
    variables: dict[str, Any] = {"enable_thinking": False}
    messages = [m._asdict() for m in CHAT]
    assert ours.render(CHAT, variables=variables) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **variables
    )
    if "loop" in template or "trim" in template:
        expected = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)
        assert ours.render(CHAT, add_generation_prompt=False) == expected


def test_what_a_template_refuses_is_the_requests_fault(folder: Path) -> None:
    template = put(folder, BRACKETS)
    with pytest.raises(InvalidRequestError, match="must alternate") as error:
        template.render([Message("assistant", "hi")])
    assert error.value.field == "prompt.chat"


def test_what_a_template_fails_on_is_the_requests_fault(folder: Path) -> None:
    template = put(folder, "{{ messages[5].content.upper() }}")
    with pytest.raises(InvalidRequestError, match=r"prompt\.chat"):
        template.render(CHAT)


@pytest.mark.parametrize(
    "attack",
    ["{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__.__subclasses__() }}"],
)
def test_a_template_stays_in_its_sandbox(folder: Path, attack: str) -> None:
    with pytest.raises(InvalidRequestError, match="unsafe"):
        put(folder, attack).render(CHAT)


def test_variables_that_the_request_decides_are_refused(folder: Path) -> None:
    template = put(folder, CHATML)
    with pytest.raises(InvalidRequestError, match="'messages'") as error:
        template.render(CHAT, variables={"messages": []})
    assert error.value.field == "prompt.chat.template_variables"


def test_a_message_that_a_template_leaves_out_cannot_be_continued(folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be continued"):
        put(folder, "{{ messages[0].content }}").render(CHAT, add_generation_prompt=False)


def test_a_template_inside_the_configuration_is_found(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "{{ bos_token }}!"}]
    config = {"chat_template": named, "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = read_chat_template(tmp_path)
    assert found is not None
    assert found.render(CHAT) == "<s>!"


def test_a_damaged_template_is_named(folder: Path) -> None:
    with pytest.raises(RepositoryError, match="chat template is not valid"):
        put(folder, "{% if %}")
