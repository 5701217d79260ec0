"""Write instruction data about pictures that the teacher never sees.

    python -m minillava.data.instruct --source scenes --teacher rules --kind conversation,detail,reasoning --out
    runs/instruct/data.json python train.py --stage 2 --data runs/instruct/data.json --images runs/instruct

    python -m minillava.data.instruct --source captions_val2017.json --kind detail --show        what the teacher reads of the first picture
    python -m minillava.data.instruct stats DATA.json                                            what a data set holds
    python -m minillava.data.instruct planted --source FILE.jsonl                                how well invented objects are found

The teacher is "rules" (scenes alone), "openai" (an endpoint: OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL) or the
folder of a LLaMA. Beside the data lie DATA.journal.jsonl, DATA.report.md, DATA.card.md, DATA.sheet.png and
DATA.charts.png; scenes' pictures go to images/ in the same folder."""

import argparse
import json
import sys
from pathlib import Path

from minillava.arguments import Parser
from minillava.data.instruct import card, report, stats
from minillava.data.instruct.collect import collect, estimate, missing
from minillava.data.instruct.context import KINDS
from minillava.data.instruct.endpoint import from_environment
from minillava.data.instruct.generate import ALL_KINDS, DataSet, assemble, expand, make_requests, merge
from minillava.data.instruct.journal import Journal
from minillava.data.instruct.own_model import OwnModel
from minillava.data.instruct.planted import planted
from minillava.data.instruct.prompts import FOLDER, Prompts
from minillava.data.instruct.rules import RuleTeacher
from minillava.data.instruct.sources import Picture, read_source
from minillava.data.instruct.teacher import Request
from minillava.data.records import read_records
from minillava.data.scene_records import png
from minillava.errors import UserError, run
from minillava.files import write_atomically
from minillava.inputs.conversation import TEMPLATES


def parser() -> Parser:
    flags = Parser(prog="data.instruct", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        "--source",
        default="scenes",
        help="scenes, COCO's captions_*.json (instances_*.json beside it), or a .jsonl (default scenes)",
    )
    flags.add_argument("--start", type=int, default=0, help="pictures to pass over (default 0)")
    flags.add_argument("--limit", type=int, default=0, help="pictures to use (default: all; of the endless scenes 100)")
    flags.add_argument(
        "--teacher", default="rules", help="rules, openai, or the folder of a language model (default rules)"
    )
    flags.add_argument(
        "--kind", default=",".join(KINDS), help=f"one or several of {','.join(ALL_KINDS)} (default the first three)"
    )
    flags.add_argument("--out", help="the data set, a .json file")
    flags.add_argument(
        "--show", action="store_true", help="print what the teacher reads of the first picture, and stop"
    )
    flags.add_argument(
        "--estimate", action="store_true", help="print how many tokens it will take and what they cost, and stop"
    )
    flags.add_argument(
        "--noun-phrases", action="store_true", help="kind simple: keep the captions that CC-595K's filter keeps"
    )
    flags.add_argument("--prompts", default=str(FOLDER), help="folder of prompts, to use your own")
    flags.add_argument("--shots", type=int, default=3, help="worked examples in a prompt, at most (default 3)")
    flags.add_argument(
        "--template",
        default="",
        choices=("", *TEMPLATES),
        help="of a folder's model (default: the folder's own, or v1)",
    )
    flags.add_argument("--images", help="folder of the pictures, for the contact sheet")
    flags.add_argument("--card", help="where the data set's card goes (default beside the data)")
    flags.add_argument("--seed", type=int, default=0, help="of the teacher's choices (default 0)")
    flags.add_argument("--temperature", type=float, default=0.7, help="of a model's sampling (default 0.7)")
    flags.add_argument("--max-tokens", type=int, default=1024, help="tokens of a reply, at most (default 1024)")
    flags.add_argument("--concurrency", type=int, default=4, help="requests at a time to an endpoint (default 4)")
    flags.add_argument(
        "--timeout", type=float, default=120.0, help="seconds that an endpoint may take to reply (default 120)"
    )
    flags.add_argument("--tries", type=int, default=6, help="tries of a request before the run ends (default 6)")
    flags.add_argument(
        "--budget", type=int, default=1_000_000, help="tokens that an endpoint may use in this run (default 1000000)"
    )
    flags.add_argument(
        "--price", default="0,0", help="of a million tokens read and written, for the estimate, as in 0.15,0.60"
    )
    return flags


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["stats"]:
        return _stats(argv[1:])
    is_planted = argv[:1] == ["planted"]
    flags = parser().parse_args(argv[is_planted:])
    _check(flags)
    pictures = read_source(flags.source, flags.start, flags.limit)
    if is_planted:
        return print(json.dumps(planted(pictures, flags.seed)))
    kinds, prompts = list(dict.fromkeys(flags.kind.split(","))), Prompts(Path(flags.prompts), flags.shots)
    requests = make_requests(pictures, kinds, prompts, flags.seed)
    if flags.show:
        return _show(requests, pictures)
    if not flags.out:
        raise UserError(
            "Say with --out DATA.json where the data set goes, or --show what the teacher reads; --help lists the options."
        )
    parts = [_taught(flags, requests, prompts)] if requests else []
    if "simple" in kinds:
        parts.append(expand(pictures, prompts, flags.seed, flags.noun_phrases))
    if not flags.estimate:
        _write(flags, merge(*parts), pictures, prompts)


def _check(flags: argparse.Namespace) -> None:
    for name in ("max_tokens", "concurrency", "tries", "budget"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(flags, name)}")
    if flags.shots < 0 or not flags.timeout > 0 or not 0 <= flags.temperature <= 2:
        raise UserError("--shots must be 0 or more, --timeout above 0 and --temperature from 0 to 2")
    if unknown := [kind for kind in flags.kind.split(",") if kind not in ALL_KINDS]:
        raise UserError(f"There is no kind {unknown[0]!r}; there are {', '.join(ALL_KINDS)}.")
    if flags.out and Path(flags.out).suffix != ".json":
        raise UserError(f"--out {flags.out} must be the name of a .json file")


def _stats(argv: list[str]) -> None:
    flags = Parser(prog="data.instruct stats", description="What a data set in LLaVA's JSON holds.")
    flags.add_argument("data", help="a .json or .jsonl file: one of ours, LLaVA-Instruct-150K, mix665k, ...")
    print(stats.table(stats.count(read_records(Path(flags.parse_args(argv).data)))))


def _show(requests: list[Request], pictures: list[Picture]) -> None:
    """What is read of the first picture, message by message; of kind simple there is nothing but its captions."""
    for request in [request for request in requests if request.picture is pictures[0]]:
        print(f"---- {request.kind}, {request.picture.image}")
        for message in request.messages:
            print(f"---- {message['role']}\n{message['content']}")
    if not requests:
        print("\n".join(pictures[0].captions))


# ------------------------------------------------------------ asking
def _teacher(flags: argparse.Namespace):
    if flags.teacher == "rules":
        return RuleTeacher()
    if flags.teacher == "openai":
        return from_environment(flags.temperature, flags.max_tokens, flags.concurrency, flags.timeout, flags.tries)
    return OwnModel.from_folder(
        flags.teacher, flags.template, temperature=flags.temperature, max_tokens=flags.max_tokens
    )


def _taught(flags: argparse.Namespace, requests: list[Request], prompts: Prompts) -> DataSet:
    """Ask for what the journal lacks, then read every reply from it."""
    teacher, journal = _teacher(flags), Journal(Path(flags.out).with_suffix(".journal.jsonl"))
    try:
        wanted = missing(requests, teacher, journal)
        if len(wanted) < len(requests):
            print(f"{len(requests) - len(wanted)} of {len(requests)} replies are in {journal.path}")
        if flags.teacher != "rules":
            _check_budget(flags, wanted)
        if flags.estimate:
            return DataSet()
        collect(wanted, teacher, journal, flags.budget if flags.teacher == "openai" else 0)
        return assemble(requests, [journal.replies[request.key(teacher.name)] for request in requests], prompts)
    except KeyboardInterrupt:
        print(
            f"stopped: {len(journal.replies)} replies are in {journal.path}, and the same command goes on from there",
            file=sys.stderr,
        )
        raise
    finally:
        journal.close()


def _check_budget(flags: argparse.Namespace, wanted: list[Request]) -> None:
    """Print what is ahead; UserError where an endpoint could use more than the budget."""
    read, written = estimate(wanted, flags.max_tokens)
    try:
        price_read, price_written = (float(price) for price in flags.price.split(","))
    except ValueError:
        raise UserError(
            f"--price {flags.price} must be two numbers, as in 0.15,0.60: of a million tokens read, and written"
        ) from None
    cost = (
        f", {(read * price_read + written * price_written) / 1e6:.2f} at most at --price {flags.price}"
        if price_read or price_written
        else ""
    )
    print(f"{len(wanted)} requests: about {read} tokens to read, at most {written} to write{cost}")
    if flags.teacher == "openai" and read + written > flags.budget and not flags.estimate:
        raise UserError(
            f"That may be {read + written} tokens, and the --budget is {flags.budget}: raise it, or lower --limit or --max-tokens."
        )


# ------------------------------------------------------------ writing
def _write(flags: argparse.Namespace, made: DataSet, pictures: list[Picture], prompts: Prompts) -> None:
    """Pictures of scenes first, then report and card, the data last: where it is, all is."""
    if not made.records:
        raise UserError(
            f"Nothing is left to write: {sum(made.replies.values())} replies, all left out ({_reasons(made)})."
        )
    out, shown = Path(flags.out), {record["image"] for record in made.records}
    try:
        for picture in pictures:
            if picture.scene and picture.image in shown:
                write_atomically(out.parent / picture.image, png(picture.scene.render()))
        write_atomically(out.with_suffix(".sheet.png"), report.contact_sheet(made, pictures, flags.images))
        write_atomically(out.with_suffix(".charts.png"), lambda path: report.charts(made.records, path))
        write_atomically(
            out.with_suffix(".report.md"),
            f"# {out.name}: what was made, and what was left out\n\n{report.text(made)}\n",
        )
        write_atomically(flags.card or out.with_suffix(".card.md"), _card(flags, made, pictures, prompts))
        write_atomically(out, json.dumps(made.records, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror}.") from None
    left_out = sum(sum(counts.values()) for counts in made.gone.values())
    print(f"{out}: {len(made.records)} records; left out: {left_out}{f' ({_reasons(made)})' if left_out else ''}")


def _reasons(made: DataSet) -> str:
    reasons: dict[str, int] = {}
    for counts in made.gone.values():
        for reason, number in counts.items():
            reasons[reason] = reasons.get(reason, 0) + number
    return ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items(), key=lambda item: -item[1]))


def _card(flags: argparse.Namespace, made: DataSet, pictures: list[Picture], prompts: Prompts) -> str:
    told = {
        "source": f"{flags.source}, {len(pictures)} pictures from {flags.start} on",
        "kinds": flags.kind,
        "teacher": flags.teacher,
        "prompts": f"{prompts.digest()} (hash of all texts, {prompts.shots} worked examples at most)",
        "seed": flags.seed,
    }
    if flags.teacher != "rules":
        told |= {"temperature": flags.temperature, "max tokens": flags.max_tokens}
    source = (
        "scenes" if flags.source == "scenes" else "coco" if Path(flags.source).name.startswith("captions_") else "jsonl"
    )
    is_taught = any(record["kind"] != "simple" for record in made.records)
    teacher = flags.teacher if flags.teacher in ("rules", "openai") else "own"
    return card.card(Path(flags.out).stem, made.records, told, source, teacher if is_taught else "simple")


if __name__ == "__main__":
    sys.exit(run(main, "data.instruct"))
