"""A folder's chat template is recognised by what it makes of two turns; one that is not known is said; a hostile one
harms nothing.
"""

import json
import time
from dataclasses import replace

import pytest

from minillava.errors import UserError
from minillava.inputs.chat_template import folder_template, read_chat_template, recognise
from minillava.inputs.conversation import TEMPLATES, render
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.weights.hf_config import read_config
from minillava.weights.processor_files import chat_template, load_processor, save_processor

# llava-hf/llava-1.5-7b-hf's, to the letter
LLAVA_HF = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
VICUNA = (
    '{{ bos_token }}{{ "%s" }}{%% for message in messages %%}{%% if message.role == "user" %%}{{ " USER: " + message.content | trim }}'
    '{%% else %%}{{ " ASSISTANT: " + message.content | trim + eos_token }}{%% endif %%}{%% endfor %%}'
    '{%% if add_generation_prompt %%}{{ " ASSISTANT:" }}{%% endif %%}'
)
CHATML = (
    "{%% for message in messages %%}{%% if loop.first and message['role'] != 'system' %%}{{ '%s' }}{%% endif %%}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
QWEN_SYSTEM = "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n"
HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{{ 'a' * 10 ** 11 }}",
    "number": "{{ 10 ** 10 ** 9 }}",
    "text": "{% for a in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "file": "{% include '/etc/passwd' %}",
    "syntax": "{% for %}",
    "long": "a" * 60_000,
    "refuses": "{{ raise_exception('no') }}",
    "empty": "",
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["USER: What is this? ASSISTANT: A cat.\n"] * 4, 400)


def test_what_known_models_ship():
    assert recognise(LLAVA_HF) is TEMPLATES["llava_hf"]
    assert recognise(VICUNA % TEMPLATES["v1"].system.strip()) is TEMPLATES["v1"]
    assert recognise(CHATML % QWEN_SYSTEM) == replace(TEMPLATES["chatml"], system=QWEN_SYSTEM.replace("\\n", "\n"))
    assert recognise(CHATML % "") == replace(TEMPLATES["chatml"], system="")
    assert recognise(VICUNA % "Be brief.") == replace(recognise(VICUNA % "Be brief."), system="Be brief. ")
    assert render(recognise(VICUNA % "Be brief."), [("user", "Q")], False, True) == "Be brief. USER: Q ASSISTANT:"


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])
def test_what_we_write_is_recognised(tokenizer, name):
    ours = chat_template(TEMPLATES[name], tokenizer)
    assert recognise(ours) is TEMPLATES[name]
    assert recognise("\n  {# white space #}\n" + ours + " \n") is TEMPLATES[name]


@pytest.mark.parametrize("jinja", [LLAMA_3, GEMMA, *HOSTILE.values()], ids=["llama 3", "gemma", *HOSTILE])
def test_any_other_is_said_and_does_no_harm(jinja, tmp_path, capfd):
    (tmp_path / "chat_template.jinja").write_text(jinja)
    began = time.process_time()
    assert folder_template(tmp_path, "llava_hf") == "llava_hf"
    line = capfd.readouterr().err
    assert (
        "has a chat template that is none of ours: llava_hf is used; --template" in line
        and line.count("\n") == 1
        and len(line) <= 201
    )
    assert time.process_time() - began < 5


def test_where_a_template_is_kept(tmp_path):
    for name, held in (
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]},
        ),
        ("processor_config.json", {"chat_template": "b"}),
        ("chat_template.json", {"chat_template": "c"}),
    ):
        (tmp_path / name).write_text("\ufeff" + json.dumps(held), encoding="utf-8")
        assert read_chat_template(tmp_path) == {"t": "a", "p": "b", "c": "c"}[name[0]]
    (tmp_path / "chat_template.jinja").write_text("\ufeffd", encoding="utf-8")
    assert read_chat_template(tmp_path) == "d"
    (tmp_path / "none").mkdir()
    assert read_chat_template(tmp_path / "none") is None


@pytest.mark.parametrize("name", [["default"], {"default": 1}, 3, None])
def test_a_name_that_is_no_text(tmp_path, name):
    """Of several templates: it is taken for a name like any other."""
    several = [{"name": name, "template": "b"}, 5, {"name": "default", "template": "a"}]
    for held, expected in ((several, "a"), (several[:2], "b"), ([{"name": "default", "template": name}], "")):
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": held}))
        assert read_chat_template(tmp_path) == (None if held[0]["template"] is None else expected)


def test_white_space_around_the_turns_takes_no_time():
    began = time.process_time()
    assert recognise((VICUNA % ("Be" + " " * 20_000 + "brief.")) + " " * 20_000) is not None
    assert time.process_time() - began < 5


def test_a_folder_follows_its_template_and_another_can_be_asked_for(tokenizer, tmp_path, capsys):
    parts = {"vision_config": {"image_size": 28, "patch_size": 14}, "image_token_index": tokenizer.image_id}
    config = read_config(parts)
    save_processor(Processor(tokenizer, 28, 14), tmp_path)
    path = tmp_path / "preprocessor_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in values.items() if key != "conversation_template"}))
    (tmp_path / "chat_template.jinja").write_text(VICUNA % "Be brief.")
    ours = load_processor(tmp_path, config)
    assert tokenizer.decode(ours("Q")["input_ids"][0]) == "Be brief. USER: Q ASSISTANT:"
    save_processor(ours, tmp_path / "again")  # a system prompt of its own is kept in the chat template
    again = load_processor(tmp_path / "again", config)
    assert tokenizer.decode(again("Q")["input_ids"][0]) == "Be brief. USER: Q ASSISTANT:"
    assert load_processor(tmp_path, config, "v0").template == "v0" and not capsys.readouterr().err
    with pytest.raises(UserError, match="no conversation template"):
        load_processor(tmp_path, config, "v9")
