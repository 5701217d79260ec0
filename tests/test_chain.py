"""The chain: parts run once, gates hold, what is published is thinned and whole."""

import json

import pytest

from minillava.errors import UserError
from minillava.pretrain import chain

SCORES = dict.fromkeys(
    ("existence", "list", "color", "count", "count_of", "where", "relation", "group", "reasoning", "describe"), 0.5
)
PROBE = {"name": 95.0, "row": 94.0, "column": 91.0}
FIGURES = {
    "vision": {"tower": PROBE},
    "language": {"as prose": SCORES, "as map": SCORES},
    "stage1": {"projector": PROBE, "stage 1 only": SCORES},
    "stage2": {"sees": SCORES, "unseen pairs": SCORES, "blind": SCORES},
}


@pytest.fixture
def stand_ins(monkeypatch):
    """Commands that write a folder at once, and measures that cost nothing."""
    write = "import json,pathlib,sys; f=pathlib.Path(sys.argv[1]); f.mkdir(parents=True,exist_ok=True); (f/'look-up').mkdir(exist_ok=True); "
    write += "rows=''.join(json.dumps({{'step':i,'loss':1.0,'seconds':6.0}})+chr(10) for i in range(10)); "
    write += (
        "[(p/'metrics.jsonl').write_text(rows) for p in (f,f/'look-up')]; (f/'model.safetensors').write_text('m'); "
    )
    write += "(f/'checkpoint.safetensors').write_text('c')"
    monkeypatch.setattr(chain, "COMMANDS", {part: f'python -c "{write}" {{out}}/{part}' for part in FIGURES})
    monkeypatch.setattr(chain, "MEASURES", {part: lambda folder: (FIGURES[folder.name], "") for part in FIGURES})


def test_parts_run_once_and_are_measured(stand_ins, tmp_path):
    first = chain.Chain(tmp_path, ignore_gates=False)
    first.run("vision", "language")
    assert first.report["vision"] == {"minutes": 2.0, "figures": FIGURES["vision"], "missed": ""}
    (tmp_path / "vision" / "model.safetensors").unlink()
    again = chain.Chain(tmp_path, ignore_gates=False)
    again.run("vision", "language", "stage1")
    assert (
        set(again.report) == {"vision", "language", "stage1"}
        and not (tmp_path / "vision" / "model.safetensors").exists()
    )


def test_a_missed_gate_ends_the_chain_unless_told_otherwise(stand_ins, tmp_path, monkeypatch):
    monkeypatch.setitem(
        chain.MEASURES, "vision", lambda folder: (FIGURES["vision"], chain.below({"row": 91.5}, {"row": 93}))
    )
    with pytest.raises(UserError, match=r"vision misses its gate: row is 91\.5, the gate 93"):
        chain.Chain(tmp_path, ignore_gates=False).run("vision")
    assert not (tmp_path / "report.json").exists()
    unstopped = chain.Chain(tmp_path, ignore_gates=True)
    unstopped.run(*FIGURES)
    page = chain.page(unstopped.report)
    assert (
        "pretrain all --ignore-gates" in page and "The gate that tiny-vision missed: row is 91.5, the gate 93." in page
    )


def test_a_part_that_fails_names_its_log(monkeypatch, tmp_path):
    monkeypatch.setattr(chain, "COMMANDS", {"vision": 'python -c "raise SystemExit(3)"'})
    with pytest.raises(UserError, match=r"vision failed: .*vision\.log"):
        chain.Chain(tmp_path, ignore_gates=False).run("vision")


def test_what_is_published(stand_ins, tmp_path):
    made = chain.Chain(tmp_path / "run", ignore_gates=False)
    made.run(*FIGURES)
    chain.publish(tmp_path / "run", made.report, tmp_path / "weights")
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == [
        "README.md",
        "tiny",
        "tiny-language",
        "tiny-stage1",
        "tiny-vision",
    ]
    assert not list((tmp_path / "weights").rglob("checkpoint*"))
    assert (tmp_path / "weights" / "tiny-language" / "look-up.jsonl").exists()
    page = (tmp_path / "weights" / "README.md").read_text()
    assert (
        "python -m minillava.pretrain all" in page
        and "| the projector | 95.0 | 94.0 | 91.0 |" in page
        and "50.0" in page
    )
    apart = "\n## At full size\n\nMeasured by hand.\n"
    (tmp_path / "weights" / "README.md").write_text("an old page\n" + apart)
    chain.publish(tmp_path / "run", made.report, tmp_path / "weights")
    assert (tmp_path / "weights" / "README.md").read_text() == page + apart


def test_metrics_are_thinned_to_three_hundred_rows_and_keep_their_mean():
    rows = [{"step": step, "loss": float(step)} for step in range(3000)] + [{"step": 2999, "scores": {"list": 1}}]
    kept = [json.loads(line) for line in chain.thinned("".join(json.dumps(row) + "\n" for row in rows)).splitlines()]
    losses = [row["loss"] for row in kept if "loss" in row]
    assert len(kept) <= 300 and kept[-1]["scores"] == {"list": 1}
    assert sum(losses) / len(losses) == pytest.approx(1499.5, rel=0.01)
    short = "".join(json.dumps(row) + "\n" for row in rows[:5])
    assert chain.thinned(short) == short
