"""Does the check notice a small mistake? Change each solution in one place, and see whether the check fails.

    python -m lessons.mutate                  # all exercises: the share that is caught, and the survivors
    python -m lessons.mutate rope sample      # some of them
    python -m lessons.mutate --sample 5       # five mutants of each

A mutant is the solution's source with one operator, comparison, constant, axis or word (cos, sin, ...) changed. Those
that the check lets pass are survivors; lessons/survivors.json says of each why (most compute the same, and are no
mistake), and one without a reason is reported.
"""

import argparse
import ast
import copy
import inspect
import json
import signal
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lessons.examine import examine
from lessons.solutions import FILES, HELPERS, solution
from lessons.swap import original, short
from minillava.arguments import Parser
from minillava.errors import UserError, run

SURVIVORS = Path(__file__).with_name("survivors.json")
SECONDS = 6  # of the processor, for one mutant; what takes longer loops for ever, and is caught
OPERATORS = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
WORDS = {
    "cos": "sin",
    "sin": "cos",
    "argmax": "argmin",
    "max": "min",
    "min": "max",
    "sum": "mean",
    "mean": "sum",
    "rsqrt": "sqrt",
    "sqrt": "exp",
}
WORDS |= {
    "keys": "values",
    "values": "keys",
    "repeat_interleave": "repeat",
    "layer_norm1": "layer_norm2",
    "layer_norm2": "layer_norm1",
}
WORDS |= {"startswith": "endswith", "any": "all", "all": "any"}
WORDS |= {
    "input_layernorm": "post_attention_layernorm",
    "gate_proj": "up_proj",
    "linear_1": "linear_2",
    "silu": "gelu",
    "gelu": "relu",
}


@dataclass(frozen=True)
class Mutant:
    key: str
    name: str  # of the function or class
    change: str  # "return 2 * (x + y): x + y -> x - y", the line and what is changed in it
    source: str


# ------------------------------------------------------------ making them
def written(key: str) -> dict[str, object]:
    """{target: object} of all that makes up the solution."""
    return solution(key) | {target: original(target) for target in HELPERS.get(key, ())}


def mutants(key: str) -> Iterator[Mutant]:
    """Every mutant of an exercise's solution."""
    for target, part in written(key).items():
        source = plain(inspect.getsource(part))
        tree, seen = ast.parse(source), {source}
        lines = [text.strip(" :") for text in source.splitlines()]
        for path, replacement, line, before, after in _changes(tree):
            changed = copy.deepcopy(tree)
            _put(changed, path, replacement)
            text = ast.unparse(ast.fix_missing_locations(changed))
            if text not in seen:
                seen.add(text)
                yield Mutant(key, short(target), f"{lines[line - 1]}: {before} -> {after}", text)


def plain(source: str) -> str:
    """The source as Python writes it, without docstrings: how it is laid out does not change a line."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)


def _changes(tree: ast.AST) -> Iterator[tuple]:
    for path, node, parent in _walk(tree):
        for new in _variants(node, parent):
            yield path, new, getattr(node, "lineno", 0), ast.unparse(node), ast.unparse(ast.fix_missing_locations(new))


def _walk(node: ast.AST, path: tuple = (), parent: ast.AST | None = None) -> Iterator[tuple]:
    """(path, node, parent) of whatever may be changed: no docstrings, annotations, defaults of parameters or texts of
    errors.
    """
    yield path, node, parent
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "args", "exc", "decorator_list") and not (
            field == "args" and isinstance(node, ast.Call)
        ):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if isinstance(child, ast.AST) and not docstring:
                yield from _walk(child, (*path, (field, index if isinstance(value, list) else None)), node)


def _variants(node: ast.AST, parent: ast.AST | None) -> Iterator[ast.AST]:
    def changed(**fields):
        new = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    if isinstance(node, ast.BinOp):
        yield from (changed(op=op()) for op in OPERATORS.get(type(node.op), ()))
        yield from (copy.deepcopy(node.left), copy.deepcopy(node.right))
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from (changed(ops=[op()]) for op in COMPARISONS.get(type(node.ops[0]), ()))
    elif isinstance(node, ast.BoolOp):
        yield changed(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield copy.deepcopy(node.operand)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):  # an axis: -1
        value = -node.operand.value
        yield from (ast.Constant(new) for new in (value - 1, value + 1))
    elif (
        isinstance(node, ast.Constant)
        and not isinstance(parent, ast.UnaryOp)
        and not (isinstance(parent, ast.keyword) and parent.arg == "strict")
    ):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int | float):
            yield from (ast.Constant(new) for new in (node.value + 1, node.value - 1))
    elif isinstance(node, ast.Attribute) and node.attr in WORDS:
        yield changed(attr=WORDS[node.attr])
    elif isinstance(node, ast.Name) and node.id in WORDS and isinstance(node.ctx, ast.Load):
        yield changed(id=WORDS[node.id])
    elif (
        isinstance(node, ast.List | ast.Tuple)
        and len(node.elts) == 2
        and isinstance(getattr(node, "ctx", None), ast.Load)
    ):
        yield changed(elts=node.elts[::-1])
    elif isinstance(node, ast.IfExp):
        yield from (copy.deepcopy(node.body), copy.deepcopy(node.orelse))
    elif isinstance(node, ast.If):
        yield changed(test=ast.Constant(False))
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name):
        yield from (changed(slice=ast.Constant(index)) for index in (1, 2))
    elif isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.func) not in ("min", "max", "zip"):
        for i in range(len(node.args) - 1):
            yield changed(args=[*node.args[:i], node.args[i + 1], node.args[i], *node.args[i + 2 :]])
    elif isinstance(node, ast.keyword) and node.arg == "strict":  # guards against what cannot happen here
        return
    elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Name | ast.Attribute):
        yield changed(value=ast.Constant(None))


def _put(tree: ast.AST, path: tuple, new: ast.AST) -> None:
    node = tree
    for field, index in path[:-1]:
        node = getattr(node, field) if index is None else getattr(node, field)[index]
    field, index = path[-1]
    if index is None:
        setattr(node, field, new)
    else:
        getattr(node, field)[index] = new


# ------------------------------------------------------------ trying them
def caught(mutant: Mutant, whole: bool = True) -> bool:
    """Does the check fail on it? An endless loop counts."""
    parts = solution(mutant.key)
    target = next(target for target in written(mutant.key) if short(target) == mutant.name)
    names = dict(vars(sys.modules[original(target).__module__]))
    try:
        exec(compile(mutant.source, f"<{mutant.name}>", "exec"), names)
        for other in written(mutant.key):
            if other != target:  # the others, so that they see the mutant
                exec(compile(textwrap.dedent(inspect.getsource(original(other))), f"<{short(other)}>", "exec"), names)
    except Exception:
        return True
    parts = {target: names[short(target)] for target in parts}
    before = signal.signal(signal.SIGVTALRM, _late)
    # and again each second, should someone catch it
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS * (10 if whole else 1), 1.0)
    try:
        if not all(line.ok for line in examine(mutant.key, parts, whole=False)):
            return True
        return whole and not all(line.ok for line in examine(mutant.key, parts))
    except Late:
        return True
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class Late(BaseException):
    """Not an Exception, which the check would take for the student's."""


def _late(*_):
    raise Late


def reasons() -> dict[tuple[str, str, str], str]:
    """{(key, name, change): why it is no mistake}."""
    listed = json.loads(SURVIVORS.read_text(encoding="utf-8")) if SURVIVORS.exists() else []
    return {(each["key"], each["part"], each["mutant"]): each["why"] for each in listed}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="mutate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", help="exercises (default: all)")
    parser.add_argument("--sample", type=int, help="so many mutants of each exercise, evenly spread")
    parser.add_argument(
        "--no-model", action="store_true", help="only the first three steps of the check, without the whole model"
    )
    flags = parser.parse_args(argv)
    if unknown := set(flags.keys) - set(FILES):
        raise UserError(f"there is no exercise {min(unknown)!r}; there are {', '.join(FILES)}")
    known, total, unexplained, survived = reasons(), 0, 0, 0
    for key in flags.keys or FILES:
        made = list(mutants(key))
        if flags.sample:
            made = made[:: max(1, len(made) // flags.sample)]
        left = [mutant for mutant in made if not caught(mutant, not flags.no_model)]
        total, survived = total + len(made), survived + len(left)
        print(f"{key}: {len(made) - len(left)} of {len(made)} caught", flush=True)
        for mutant in left:
            why = known.get((mutant.key, mutant.name, mutant.change))
            unexplained += why is None
            print(f"    {mutant.name}, {mutant.change}   ({why or 'NOT EXPLAINED'})", flush=True)
    share = 100 * (total - survived) / total
    print(
        f"{total - survived} of {total} caught ({share:.1f}%); {survived - unexplained} survivors explained, {unexplained} not"
    )
    return 0 if not unexplained else 1


if __name__ == "__main__":
    sys.exit(run(main, "mutate"))
