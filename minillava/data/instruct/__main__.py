"""Write instruction data about pictures that the teacher never sees.

    python -m minillava.data.instruct --source scenes --teacher rules --out runs/instruct/data.json
    python train.py --stage 2 --data runs/instruct/data.json --images runs/instruct

    python -m minillava.data.instruct --source captions_val2017.json --kind detail --show    what the teacher reads
    python -m minillava.data.instruct stats DATA.json                       what a data set holds
    python -m minillava.data.instruct planted --source FILE.jsonl           how well invented objects are found

The teacher is "rules" (for scenes alone), "openai" (an endpoint: OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL) or the
folder of a LLaMA. Beside the data lie DATA.journal.jsonl, DATA.report.md, DATA.card.md, DATA.sheet.png and
DATA.charts.png; scenes' pictures go to images/ in the same folder. minillava/data/instruct/README.md says more.
"""

import argparse
import json
import sys
from pathlib import Path

from minillava.arguments import Parser, add_flags, from_flags
from minillava.data.instruct import stats
from minillava.data.instruct.collect import collect, estimate, missing
from minillava.data.instruct.endpoint import from_environment
from minillava.data.instruct.generate import DataSet, assemble, expand, make_requests, merge
from minillava.data.instruct.journal import Journal
from minillava.data.instruct.output import write
from minillava.data.instruct.own_model import OwnModel
from minillava.data.instruct.planted import planted
from minillava.data.instruct.prompts import FOLDER, Prompts
from minillava.data.instruct.rules import RuleTeacher
from minillava.data.instruct.settings import Settings
from minillava.data.instruct.sources import Picture, read_source
from minillava.data.instruct.teacher import Request, Teacher
from minillava.data.records import read_records
from minillava.errors import UserError, run, say
from minillava.files import kind_of, locked


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["stats"]:
        return _stats(argv[1:])
    is_planted = argv[:1] == ["planted"]
    settings = _settings(argv[is_planted:])
    pictures = read_source(settings.source, settings.start, 1 if settings.show else settings.limit)
    if is_planted:
        return print(json.dumps(planted(pictures, settings.seed)))
    prompts = Prompts(Path(settings.prompts or FOLDER), settings.shots)
    requests = make_requests(pictures, settings.kinds, prompts, settings.seed)
    if settings.show:
        return _show(requests, pictures[0])
    if not settings.out:
        raise UserError("--out DATA.json says where the data set goes, and --show what the teacher reads; see --help.")
    out = Path(settings.out)
    if out.exists() and not out.is_file():
        raise UserError(f"{out} is {kind_of(out)}: choose another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _make(settings, pictures, requests, prompts)


def _settings(argv: list[str]) -> Settings:
    parser = Parser(prog="data.instruct", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, Settings)
    return from_flags(Settings, parser.parse_args(argv))


def _stats(argv: list[str]) -> None:
    parser = Parser(prog="data.instruct stats", description="What a data set in LLaVA's JSON holds.")
    parser.add_argument("data", help="a .json or .jsonl file: one of ours, LLaVA-Instruct-150K, mix665k, ...")
    print(stats.table(stats.count(read_records(Path(parser.parse_args(argv).data)))))


def _show(requests: list[Request], picture: Picture) -> None:
    """What is read of a picture, message by message; of kind simple there is nothing but its captions."""
    for request in requests:
        print(f"---- {request.kind}, {request.picture.image}")
        for message in request.messages:
            print(f"---- {message['role']}\n{message['content']}")
    if not requests:
        print("\n".join(picture.captions))


def _make(settings: Settings, pictures: list[Picture], requests: list[Request], prompts: Prompts) -> None:
    parts = [_taught(settings, requests, prompts)] if requests else []
    if "simple" in settings.kinds:
        parts.append(expand(pictures, prompts, settings.seed, settings.noun_phrases))
    if not settings.estimate:
        write(settings, merge(*parts), pictures, prompts)


def _taught(settings: Settings, requests: list[Request], prompts: Prompts) -> DataSet:
    """Ask for what the journal lacks, then read every reply from it."""
    teacher, journal = _teacher(settings), Journal(Path(settings.out).with_suffix(".journal.jsonl"))
    try:
        wanted = missing(requests, teacher, journal)
        if len(wanted) < len(requests):
            print(f"{len(requests) - len(wanted)} of {len(requests)} replies are in {journal.path}")
        if settings.teacher != "rules":
            _check_budget(settings, wanted)
        if settings.estimate:
            return DataSet()
        collect(wanted, teacher, journal, settings.budget if settings.teacher == "openai" else 0)
        return assemble(requests, [journal.replies[request.key(teacher.name)] for request in requests], prompts)
    except KeyboardInterrupt:
        say(f"stopped: {len(journal.replies)} replies are in {journal.path}, and the same command goes on from there")
        raise
    finally:
        journal.close()


def _teacher(settings: Settings) -> Teacher:
    if settings.teacher == "rules":
        return RuleTeacher()
    if settings.teacher == "openai":
        return from_environment(settings)
    return OwnModel.from_folder(
        settings.teacher, settings.template, temperature=settings.temperature, max_tokens=settings.max_tokens
    )


def _check_budget(settings: Settings, wanted: list[Request]) -> None:
    """Print what is ahead; UserError if an endpoint could use more than the budget."""
    read, written = estimate(wanted, settings.max_tokens)
    cost = sum(tokens * price for tokens, price in zip((read, written), settings.prices, strict=True)) / 1e6
    at_most = f", {cost:.2f} at most at --price {settings.price}" if any(settings.prices) else ""
    print(f"{len(wanted)} requests: about {read} tokens to read, at most {written} to write{at_most}")
    if settings.teacher == "openai" and read + written > settings.budget and not settings.estimate:
        raise UserError(
            f"That may be {read + written} tokens, and the --budget is {settings.budget}: raise it, or lower --limit "
            "or --max-tokens."
        )


if __name__ == "__main__":
    sys.exit(run(main, "data.instruct"))
