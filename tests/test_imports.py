"""The house's floors: imports go one way (read from the source, nothing is run)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "minillava"
LEAVES = {"errors", "files", "image_file", "render_jinja"}  # everyone may use them
FLOORS = [
    {"config", "attention", "kv_cache", "image", "image_settings", "anyres", "tokenizer", "kernels", "arguments"},
    {"vision", "projector", "language_model", "conversation"},
    {"model", "chat_template", "processor"},
    {"generation_config", "weights", "describe", "generate", "quantize", "data"},
    {"pretrain", "training", "distributed", "eval", "bench"},
]
FOREIGN = {"transformers", "torchvision", "einops", "accelerate", "deepspeed", "peft"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts(path: Path) -> set[str]:
    """The parts of minillava that a file uses: "minillava.data.scenes.Scene" is "data"."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("minillava.")}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(part: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if part in names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = part_of(path)
    if own == "__init__":
        return
    used = parts(path) - LEAVES - {own}
    if own in LEAVES:
        assert not used
        return
    above = {part for part in used if floor(part) > floor(own)}
    assert not above, f"{path.name} is on a lower floor than {sorted(above)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_foreign_models(path):
    assert not {name.split(".")[0] for name in imported(path)} & FOREIGN


def test_every_part_has_its_floor():
    known = LEAVES.union({"__init__"}, *FLOORS)
    assert {part_of(path) for path in SOURCES} <= known


def test_the_model_never_imports_the_tokenizer():
    for name in ("config", "attention", "kv_cache", "vision", "projector", "language_model", "model"):
        assert not parts(PACKAGE / f"{name}.py") & {"tokenizer", "conversation", "processor", "image"}


def test_data_never_imports_the_model():
    for path in (PACKAGE / "data").glob("*.py"):
        assert not parts(path) & {"model", "language_model", "vision", "projector", "weights", "generate"}, path.name


def test_kernels_import_nothing_of_ours_and_nothing_here_imports_lessons():
    for path in SOURCES:
        assert not any(name.split(".")[0] == "lessons" for name in imported(path))
        if part_of(path) == "kernels":
            assert parts(path) <= {"kernels"} | LEAVES
