"""A student's part in the place of the product's: everywhere, counted, and undone at the end.

    with replaced({"minillava.language_model.apply_rope": mine}) as calls:
        model(...)                      # runs on `mine`
    calls["minillava.language_model.apply_rope"]    # how often

The product looks its functions up when it calls them, so it is enough to put the new object under every name that the
old one has: in its own module or class, and in each module that copied it with `from ... import ...`. A class is
replaced before the model is built; its `forward` is counted.
"""

import ast
import functools
import importlib
import importlib.util
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from minillava.errors import UserError, in_words

# The product's twins of a part, which compute the same in another way, and what takes their places: mostly the part
# itself. The merge loop of the product's tokenizer is a library's, so the tokenizer encodes by lessons/bpe.py instead.
COMPANIONS = {
    "minillava.attention.eager_attention": {
        "minillava.attention.sdpa_attention": "minillava.attention.eager_attention",
        "minillava.attention.triton_attention": "minillava.attention.eager_attention",
    },
    "minillava.training.loss.next_token_loss": {
        "minillava.training.loss.chunked_loss": "minillava.training.loss.next_token_loss"
    },
    "lessons.bpe.merge_pieces": {"minillava.inputs.tokenizer.Tokenizer.encode": "lessons.bpe.encode"},
}
# On a GPU a step of decoding is recorded, with a cache of its own, and replayed: no part would be called again.
RECORDS = "minillava.decode_graph.can_be_recorded"


# ------------------------------------------------------------ names
def find(target: str) -> tuple[object, str]:
    """The module or class that holds the target "package.module[.Class].name", and the name.

    UserError if there is none.
    """
    *path, name = target.split(".")
    for length in range(len(path), 0, -1) if path[:1] in (["minillava"], ["lessons"]) else ():
        try:
            holder = importlib.import_module(".".join(path[:length]))
        except ModuleNotFoundError:
            continue
        for part in path[length:]:
            holder = getattr(holder, part, None)
        if hasattr(holder, name):
            return holder, name
        break
    raise UserError(f"REPLACES names {target!r}, which is not in the product")


def original(target: str):
    """What the product has under this name."""
    holder, name = find(target)
    return getattr(holder, name)


def short(target: str) -> str:
    """The name that the student's file defines: "minillava.language_model.apply_rope" is "apply_rope"."""
    return target.rpartition(".")[2]


# ------------------------------------------------------------ replacing
@contextmanager
def replaced(parts: dict[str, object]) -> Iterator[Counter]:
    """Put each part in its target's place for as long as the block runs; yields how often each target was called."""
    calls = Counter()
    with ExitStack() as undo:
        put(RECORDS, lambda cache: False, undo)
        for target, part in parts.items():
            part = _counted(part, target, calls, undo)
            put(target, part, undo)
            for twin, source in COMPANIONS.get(target, {}).items():
                # an object of its own, so that each name gets its own back
                put(twin, functools.partial(part) if source == target else original(source), undo)
        yield calls


def put(target: str, new, undo: ExitStack) -> None:
    """`new` under every name of the target's object, until `undo` is closed."""
    holder, name = find(target)
    old = getattr(holder, name)
    if isinstance(holder, type):
        setattr(holder, name, new)
        undo.callback(setattr, holder, name, old)
    else:
        _exchange(old, new, holder, name)
        undo.callback(_exchange, new, old, holder, name)


def _exchange(old, new, holder, name: str) -> None:
    """The target's name, and every module-level name of `old` in the product and in a running command, becomes a name
    of `new`.
    """
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] in ("minillava", "__main__", "chat", "train"):
            for copy, value in list(vars(module).items()):
                if value is old and not copy.startswith("__"):
                    setattr(module, copy, new)
    setattr(holder, name, new)


def _counted(part, target: str, calls: Counter, undo: ExitStack):
    """The part, which counts its calls; of a class the calls of its `forward`."""
    calls[target] = 0

    def counting(function):
        @functools.wraps(function)
        def counted(*args, **kwargs):
            calls[target] += 1
            return function(*args, **kwargs)

        return counted

    if not isinstance(part, type):
        return counting(part)
    own, forward = "forward" in vars(part), part.forward
    part.forward = counting(forward)
    undo.callback(lambda: setattr(part, "forward", forward) if own else delattr(part, "forward"))
    return part


# ------------------------------------------------------------ the student's file
def load_file(path: str | Path):
    """The module of a student's file.

    UserError, in one sentence with the line, for whatever keeps it from being imported.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    name = f"student_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise unreadable(path, error) from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{path.name} cannot be imported: {describe(error, path)}") from None
    return module


def unreadable(path: str | Path, error: SyntaxError) -> UserError:
    return UserError(f"{Path(path).name}, line {error.lineno}: Python cannot read this: {error.msg}")


def targets_of(path: str | Path) -> tuple[str, ...]:
    """What an exercise's file REPLACES, read without running it."""
    try:
        body = ast.parse(Path(path).read_bytes()).body
    except SyntaxError as error:
        raise unreadable(path, error) from None
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REPLACES":
            targets = ast.literal_eval(node.value)
            return (targets,) if isinstance(targets, str) else tuple(targets)
    raise UserError(f"{path} no longer says what it REPLACES; git checkout brings the line back")


def parts_of(module, targets: Iterable[str]) -> dict[str, object]:
    """{target: the student's object}. UserError where the file lacks one, or has something else under its name."""
    parts = {}
    for target in targets:
        kind = "class" if isinstance(original(target), type) else "function"
        part = getattr(module, short(target), None)
        if part is None:
            raise UserError(f"{Path(module.__file__).name} has no {kind} {short(target)}")
        if not callable(part) or isinstance(part, type) != (kind == "class"):
            raise UserError(
                f"{Path(module.__file__).name}: {short(target)} must be a {kind}, but it is of the type {type(part).__name__}"
            )
        parts[target] = part
    return parts


def describe(error: BaseException, path: str | Path) -> str:
    """An exception in a few words, with the last line of the student's file that it came through."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == Path(path).name
    ]
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:300] + " ..."
    return f"{type(error).__name__}{': ' * bool(text)}{text}" + (f" (line {lines[-1]})" if lines else "")


# ------------------------------------------------------------ --with
@contextmanager
def student_parts(files: Iterable[str]) -> Iterator[Counter]:
    """Run the product on the parts in these files; whatever goes wrong because of them is a UserError."""
    parts, made_in = {}, {}
    for file in files:
        module = load_file(file)
        targets = getattr(module, "REPLACES", None)
        targets = (targets,) if isinstance(targets, str) else targets
        if not (isinstance(targets, tuple | list) and targets and all(isinstance(target, str) for target in targets)):
            raise UserError(f'{file} must say what it replaces, as in REPLACES = "minillava.language_model.apply_rope"')
        for target, part in parts_of(module, targets).items():
            if target in made_in:
                raise UserError(f"both {made_in[target]} and {file} replace {target}: give one of them")
            parts[target], made_in[target] = _guarded(part, file), file
    try:
        with replaced(parts) as calls:
            yield calls
    except Exception as error:
        if in_words(error) is not None:  # what a disk, a terminal or the memory does is not the part's fault
            raise
        raise UserError(
            f"the model cannot run on {', '.join(map(str, files))}: {' '.join(f'{type(error).__name__}: {error}'.split())}"
        ) from None


def _guarded(part, file: str):
    """The part, whose exceptions are UserErrors that name the file."""

    def guard(function):
        @functools.wraps(function)
        def guarded(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except UserError:
                raise
            except NotImplementedError as error:
                raise UserError(f"{file} is not finished: {error}") from None
            except Exception as error:
                raise UserError(f"{file}: {part.__name__} raised {describe(error, file)}") from None

        return guarded

    if not isinstance(part, type):
        return guard(part)
    own = {name: guard(getattr(part, name)) for name in ("__init__", "forward") if name in vars(part)}
    return type(part.__name__, (part,), own)  # the class itself stays as it is
