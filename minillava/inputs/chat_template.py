"""Which of our templates a folder's chat template is: both are given the same two turns, and what they make of them is
compared.

What differs in white space and in "<s>" and "</s>" alone counts as the same: llava-hf's own template leaves the "</s>"
out. A template that differs in nothing but what stands before the first turn is ours with that as its system prompt.
"""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from minillava.errors import say
from minillava.files import read_file, read_json
from minillava.inputs.conversation import TEMPLATES, Template, render

TURNS = [("user", "What is one?"), ("assistant", "It is two."), ("user", "Why three?")]
RENDERER = Path(__file__).with_name("render_jinja.py")
LONGEST, WAIT = 50_000, 20  # characters of a template; seconds until it is given up where its process cannot be limited


def folder_template(folder: Path, fallback: str) -> str | Template:
    """The template that the folder's chat template is; where it has none, or one that is not known, `fallback`, and a
    line that says so.
    """
    jinja = read_chat_template(folder)
    found = recognise(jinja) if jinja is not None else None
    if found is None:
        what = "names no chat template" if jinja is None else "has a chat template that is none of ours"
        say(f"note: {folder} {what}: {fallback} is used; --template chooses one of {', '.join(TEMPLATES)}.")
        return fallback
    return found.name if found == TEMPLATES[found.name] else found


def read_chat_template(folder: Path) -> str | None:
    """The Jinja text of chat_template.jinja, or of the JSON files that may hold it, in transformers' order; None if
    there is none.
    """
    jinja = Path(folder) / "chat_template.jinja"
    if jinja.exists():
        return read_file(jinja).decode("utf-8-sig", "replace")
    files = map(jinja.with_name, ("chat_template.json", "processor_config.json", "tokenizer_config.json"))
    held = [read_json(file).get("chat_template") for file in files if file.exists()]
    text = next((value for value in held if value is not None), None)
    if isinstance(text, list):  # several, each with its name
        several = [item for item in text if isinstance(item, dict)]
        default = [item for item in several if item.get("name") == "default"]
        text = next((item.get("template") for item in default + several), "")
    return text if text is None or isinstance(text, str) else ""


def recognise(jinja: str) -> Template | None:
    """Our template that says the same, or says the same but for the system prompt; or None."""
    texts = render_jinja(jinja)
    ours = [template for template in TEMPLATES.values() if "{}" in template.user]  # "plain" holds one caption
    for text in texts:
        for template in ours:
            if _bare(text) == _bare(render(template, TURNS, add_generation_prompt=True)):
                return template
    for text in texts:
        for template in ours:
            turns = _bare(render(replace(template, system=""), TURNS, add_generation_prompt=True))
            if _bare(text).endswith(turns):
                shown = [match.start() for match in re.finditer(r"\s|</?s>|(.)", text) if match[1]]
                return replace(template, system=text[: shown[-len(turns)]].removeprefix("<s>"))
    return None


def _bare(text: str) -> str:
    return re.sub(r"\s|</?s>", "", text)


def render_jinja(jinja: str) -> list[str]:
    """What the template makes of the two turns, their contents as strings and as lists of parts; nothing where it fails
    or takes too long.
    """
    if len(jinja) > LONGEST:
        return []
    plain = [{"role": role, "content": text} for role, text in TURNS]
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TURNS]
    asked = json.dumps({"template": jinja, "conversations": [plain, parts]}).encode()
    try:
        done = subprocess.run([sys.executable, str(RENDERER)], input=asked, capture_output=True, timeout=WAIT)
        texts = json.loads(done.stdout) if done.returncode == 0 else []
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []
    return [text for text in texts if text and len(text) <= LONGEST]
