"""The house's floors: imports go one way and never in a circle (read from the source, nothing is run)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "minillava"
LEAVES = {"errors", "distributed", "files", "arguments", "kernels"}  # everyone may use them
FLOORS = [
    {"config", "attention", "kv_cache", "anyres"},
    {"vision", "projector", "language_model"},
    {"model", "lora"},
    {"inputs", "decode_graph"},
    {"weights", "generation", "data"},
    {"training"},
    {"pretrain"},
    {"eval", "bench"},
]
FOREIGN = {"transformers", "torchvision", "einops", "accelerate", "deepspeed", "peft"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Imports inside a function, or that a module does only as a command, each with its reason: they run later, and so close
# no circle.
LATER = {
    # Triton comes with PyTorch for CUDA alone
    "minillava.attention": {"minillava.kernels.flash_attention", "minillava.kernels.flash_decoding"},
    "minillava.language_model": {"minillava.kernels.decoder_layer"},
    "minillava.bench.tiles": {"minillava.kernels.flash_attention", "minillava.kernels.flash_decoding"},
}


def names_of(node: ast.AST) -> set[str]:
    """Dotted names of what one import statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import"
        return {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


def imported(path: Path) -> set[str]:
    """What a file imports, inside functions too."""
    return set().union(*map(names_of, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))


def parts(path: Path) -> set[str]:
    """The parts of minillava that a file uses: "minillava.data.scenes.Scene" is "data"."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("minillava.")}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(part: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if part in names)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def module_named(name: str) -> str | None:
    """The module that an imported name is or is in: "minillava.data.scenes.Scene" is in "minillava.data.scenes"."""
    return next((module for module in (name, name.rpartition(".")[0]) if module in MODULES), None)


def imported_at_once(path: Path) -> set[str]:
    """The modules of minillava that importing the file imports: not those inside functions or under `if __name__ ==
    "__main__"`.
    """
    found, nodes = set(), [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        found |= {module_named(name) for name in names_of(node)}
        later = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        nodes += [child for child in ast.iter_child_nodes(node) if not isinstance(child, later) and not is_main(child)]
    return found - {None}


def is_main(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, or nothing."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module not in done:
            for other in sorted(graph[module]):
                if found := visit(other, [*way, module]):
                    return found
            done.add(module)
        return []

    return next(filter(None, (visit(module, []) for module in graph)), [])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = part_of(path)
    if own == "__init__" or path.name == "__main__.py":  # a command may use everything, and nothing uses it
        return
    used = parts(path) - LEAVES - {own}
    if own in LEAVES:
        assert not used
        return
    above = {part for part in used if floor(part) > floor(own)}
    assert not above, f"{path.name} is on a lower floor than {sorted(above)}"


def test_no_circle():
    assert circle({module: imported_at_once(path) for module, path in MODULES.items()}) == []


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_inside_functions_are_named_here():
    for module, path in MODULES.items():
        everywhere = {module_named(name) for name in imported(path)} - {None}
        assert everywhere - imported_at_once(path) == LATER.get(module, set()), module


def test_a_library_is_not_a_command():
    """`python -m` would warn, and run the module twice, if another had imported it before.

    What commands share is a library of its own.
    """
    commands = {
        module for module, path in MODULES.items() if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert "minillava.eval.scenes" in commands
    for module, path in MODULES.items():
        assert not {module_named(name) for name in imported(path)} & commands, module


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_foreign_models(path):
    assert not {name.split(".")[0] for name in imported(path)} & FOREIGN


def test_every_part_has_its_floor_and_every_floor_its_parts():
    assert {part_of(path) for path in SOURCES} == LEAVES.union({"__init__"}, *FLOORS)


def test_the_model_never_imports_the_tokenizer():
    for name in ("config", "attention", "kv_cache", "vision", "projector", "language_model", "model"):
        assert not parts(PACKAGE / f"{name}.py") & {"inputs"}


def test_data_never_imports_the_model():
    # a language model as the teacher
    for path in set((PACKAGE / "data").rglob("*.py")) - {PACKAGE / "data/instruct/own_model.py"}:
        assert not parts(path) & {"model", "language_model", "vision", "projector", "weights", "generation"}, path.name


def test_nothing_here_imports_the_lessons():
    for path in SOURCES:
        assert not any(name.split(".")[0] == "lessons" for name in imported(path))
