"""What README.md promises: its links lead somewhere, its commands exist, its counts are right."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *(page for part in ("weights", "minillava", "lessons") for page in (ROOT / part).rglob("README.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!http|#)([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    assert targets or page.parent != ROOT
    assert not [target for target in targets if not (page.parent / target).exists()]
    assert not re.search(
        r"\{|\b[A-Z]+(_[A-Z]+)* lines", re.sub(r"```.*?```|`.*?`", "", text, flags=re.DOTALL)
    )  # to be filled in


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # of runpy
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_flags_exist(page, monkeypatch, capsys):
    commands = re.findall(r"python (?:-m (minillava\.[\w.]+)|(\w+\.py))([^\n`#]*)", page.read_text(encoding="utf-8"))
    assert commands
    # by command, and action where it has some: ("minillava.weights", "export")
    flags: dict[tuple[str, ...], set[str]] = {}
    for module, script, rest in commands:
        action = rest.split()[:1] if module in ("minillava.weights", "minillava.training", "minillava.bench") else []
        flags.setdefault((module or script, *action), set()).update(re.findall(r"--[\w-]+", rest))
    for (name, *action), used in flags.items():
        monkeypatch.setattr(sys, "argv", [name, *action, "--help"])
        with pytest.raises(SystemExit) as left:
            if name.startswith("minillava."):
                runpy.run_module(name, run_name="__main__")
            else:
                runpy.run_path(ROOT / name, run_name="__main__")
        assert left.value.code == 0, name
        assert not used - set(re.findall(r"--[\w-]+", capsys.readouterr().out)), name


@pytest.mark.parametrize(
    ("page", "most"), [("README.md", 900), ("minillava/training/README.md", 1400)], ids=["forward", "training"]
)
def test_a_reading_path_is_as_long_as_it_says(page, most):
    """By the command that stands beside the number."""
    said, command = re.search(r"([\d,]+) lines \(`([^`]+)`", (ROOT / page).read_text(encoding="utf-8")).groups()
    counted = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = int(counted.splitlines()[-1].split()[0])
    assert abs(lines - int(said.replace(",", ""))) <= 15 and lines <= most
