"""Talk with a LLaVA about a picture.

python chat.py --image cat.png "What is this?"     # one answer, alone on stdout
python chat.py --image cat.png                     # a conversation
"""

import minillava  # isort: skip (before PyTorch: from here on Ctrl-C is quiet)

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress

import torch

from minillava.arguments import Parser
from minillava.errors import UserError, run, say
from minillava.files import given_path
from minillava.generation import check_options, end_ids, generate, new_cache, text_config, text_of
from minillava.inputs.conversation import TEMPLATES, find_template
from minillava.inputs.image import open_image
from minillava.weights import DTYPES

LONGEST = 16_384  # positions that a conversation's cache holds at most, however long the model's context is
LONGEST_LINE = 16 * LONGEST  # characters
HELP = """\
/image PATH   look at another picture (a file or an http(s) URL), and start again
/reset        forget what was said; the picture stays
/help         this list
/quit         leave, as Ctrl-D does; Ctrl-C stops an answer"""


class Conversation:
    """Turns about one picture, and the KV cache of what was read and said, so that nothing of it runs twice."""

    def __init__(self, model, processor, picture=None, **options):
        self.model, self.processor = model, processor
        self.options = {"eos_token_id": end_ids(model, processor), **options}
        self.cache = new_cache(model, 1, min(LONGEST, text_config(model).max_position_embeddings))
        self.look_at(picture)

    def look_at(self, picture) -> None:
        """Begin anew with this picture, or with none."""
        self.image_inputs = self.processor.image_inputs(picture)
        self.image_tokens = self.processor.count_image_tokens(picture)
        self.cached: list[int] = []  # the ids whose keys and values the cache holds
        self.lost_picture = False  # in a pipe: an /image failed, so that what follows would be about the wrong picture
        self.reset()

    def reset(self) -> None:
        """Forget the turns. The cache may stay: the picture, and whatever a next prompt has in common with it, is not
        run again.
        """
        self.turns: list[tuple[str, str]] = []

    def ask(self, question: str) -> Iterator[str]:
        """Yield the answer's text. Stopped early, what was said so far becomes the turn; if that is nothing, the
        question is withdrawn.
        """
        ids, said, answer = self._prompt(question), [], ""
        self.cache.truncate(common_prefix(self.cached, ids))
        try:
            for piece in text_of(self.processor, self._ids(ids, said)):
                answer += piece
                yield piece
        finally:
            self.cached = (ids + said)[: self.cache.length]
            if answer:
                self.turns += [("user", question), ("assistant", answer)]

    def _prompt(self, question: str) -> list[int]:
        """The ids of the whole conversation up to where the answer begins."""
        ids = self.processor.encode([*self.turns, ("user", question)], self.image_tokens)
        if len(ids) >= self.cache.capacity:
            remedy = "/reset starts a new conversation" if self.turns else "ask something shorter"
            length = f"{len(ids)} tokens long, with its picture,"
            raise UserError(
                f"The conversation would be {length} but the model's context is {self.cache.capacity}; {remedy}."
            )
        return ids

    def _ids(self, ids: list[int], said: list[int]) -> Iterator[int]:
        """The answer's ids, each noted in `said` as it comes."""
        inputs = {"input_ids": torch.tensor([ids]), **self.image_inputs}
        for token_id in generate(self.model, **inputs, cache=self.cache, **self.options):
            said.append(token_id)
            yield token_id


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many first ids the two have in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def show(pieces: Iterable[str]) -> None:
    """Print text as it comes, without white space around it."""
    held, begun = "", False
    for piece in pieces:
        text = held + piece if begun else piece.lstrip()
        held = text[len(text.rstrip()) :]
        begun = begun or bool(text)
        print(text.rstrip(), end="", flush=True)
    print()


# ------------------------------------------------------------ the conversation
def converse(conversation: Conversation) -> int:
    """Questions from the terminal or a pipe, until it ends; the exit status.

    A mistake costs one line, not the conversation.
    """
    terminal, status = sys.stdin.isatty(), 0
    if terminal:
        use_readline()
        print("Ask a question; /help lists the commands.")
    while True:
        try:
            line = next_line(terminal)
            if line is None or line == "/quit":
                break
            obey(conversation, line)
        except KeyboardInterrupt:
            print()
        except UserError as error:
            say(f"error: {error}")
            if not terminal:
                status = 2
                conversation.lost_picture |= line.split(" ")[0] == "/image"
    if terminal and line is None:
        print()
    return status


def next_line(terminal: bool) -> str | None:
    """What is typed, or None at the end; of a line that is too long its beginning, one character too many."""
    try:
        line = rest = input("> ") + "\n" if terminal else sys.stdin.readline(LONGEST_LINE + 1)
        while rest and not rest.endswith("\n"):
            rest = sys.stdin.readline(LONGEST_LINE)
    except (EOFError, OSError):  # the latter: a stdin that can only be written to
        return None
    return line.strip() if line else None


def obey(conversation: Conversation, line: str) -> None:
    """Answer a question, or do what a /command says."""
    command, _, rest = line.partition(" ")
    if len(line) > LONGEST_LINE:
        raise UserError(f"A line of more than {LONGEST_LINE:,} characters is left out: no conversation holds so much.")
    if not line:
        return
    if not command.startswith("/"):
        if conversation.lost_picture:
            raise UserError("This question is about a picture that could not be opened: it is left out.")
        with closing(conversation.ask(line)) as pieces:  # Ctrl-C may strike while printing, too
            show(pieces)
    elif command == "/image":
        if not rest.strip():
            raise UserError("/image needs a path or a URL.")
        conversation.look_at(open_image(rest))
    elif command == "/reset":
        conversation.reset()
    elif command == "/help":
        print(HELP)
    else:
        hint = "/image before it shows that picture" if os.path.isfile(given_path(line)) else "/help lists them"
        raise UserError(f"There is no command {line}; {hint}.")


def use_readline() -> None:
    """Arrow keys and history, where Python was built with them."""
    with suppress(ImportError):
        import readline  # noqa: F401  (its import changes input())


# ------------------------------------------------------------ the command
def parser() -> Parser:
    parser = Parser(
        prog="chat.py", description="Talk with a LLaVA about a picture. Without a question: a conversation."
    )
    add = parser.add_argument
    add("question", nargs="?", help="one question; the answer alone is printed")
    add("--image", action="append", help="the picture: a file or an http(s) URL")
    add(
        "--weights",
        default="weights/tiny",
        help="a weights folder, or ORG/NAME of the Hub, fetched once (default weights/tiny)",
    )
    add("--vision", help="the folder of the CLIP whose tower to take, for the original LLaVA-1.5, which holds none")
    add("--template", help=f"how turns are written: {', '.join(TEMPLATES)} (default: the folder's own)")
    add("--max-new-tokens", type=int, default=256, help="an answer ends after this many tokens (default 256)")
    add(
        "--temperature",
        type=float,
        default=0.0,
        help="0 takes the likeliest token always; higher is more varied (default 0)",
    )
    add("--top-k", type=int, default=0, help="draw from the K likeliest tokens only (default 0: from all)")
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="draw from the likeliest tokens that reach this probability together (default 1)",
    )
    add("--seed", type=int, help="makes what is drawn repeatable")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    add("--attention", default="auto", help="auto, eager, sdpa or triton")
    add(
        "--with",
        dest="parts",
        metavar="EXERCISE.py",
        action="append",
        help="run on a student's part, as lessons/exercises/e05_rope.py; repeatable",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    flags = parser().parse_args(arguments)
    if not flags.parts:
        return talk(flags)
    from lessons.swap import student_parts

    with student_parts(flags.parts):
        return talk(flags)


def talk(flags) -> int:
    options = {name: getattr(flags, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
    check_options(**options)  # what costs nothing to find out comes first, the weights last
    if flags.question is not None and not flags.question.strip():
        raise UserError("The question is empty.")
    if flags.template is not None:
        find_template(flags.template)
    if flags.dtype not in ("auto", *DTYPES):
        raise UserError(f"There is no dtype {flags.dtype!r}; there are auto, {', '.join(DTYPES)}.")
    if len(flags.image or ()) > 1:
        raise UserError(
            f"{len(flags.image)} pictures were given, but several pictures are not supported yet: give one --image."
        )
    picture = open_image(flags.image[0]) if flags.image else None
    model, processor = minillava.load(
        flags.weights, flags.device, flags.dtype, flags.attention, flags.template, flags.vision
    )
    template = find_template(processor.template)
    if not template.asks:
        say(f"note: the template {template.name} leaves questions out, for captions; --template v1 asks them.")
    if flags.question is not None:
        show(minillava.stream(model, processor, processor(flags.question, picture), **options))
        return 0
    return converse(Conversation(model, processor, picture, **options))


if __name__ == "__main__":
    closed = sys.stdout is None  # then the answer is lost, as in `cat FILE >&-`
    sys.exit(run(main, "chat.py") or int(closed))
