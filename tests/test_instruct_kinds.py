"""The comparison of kinds of data: equal budgets, the held-out questions, the table, and going on where it stopped."""

import json

import pytest

from minillava.data.questions import Question
from minillava.data.scenes import sample_scene
from minillava.errors import UserError
from minillava.eval import instruct_kinds
from minillava.training.samples import JsonSamples
from minillava.training.scoring import Case


def test_every_row_has_as_many_records(tmp_path):
    for number, kinds in enumerate(kinds for kinds in instruct_kinds.ROWS.values() if kinds):
        words = instruct_kinds.write_data(tmp_path / str(number), kinds, 12)
        samples = JsonSamples(tmp_path / str(number) / "data.json", tmp_path / str(number))
        held = [record["kind"] for record in samples.records]
        assert len(samples) == 12 and all(held.count(kind) == 12 // len(kinds) for kind in kinds)
        assert words == sum(len(text.split()) for sample in samples for who, text in sample.turns if who == "assistant")


def test_held_out_questions_are_of_scenes_that_no_data_shows():
    asked = instruct_kinds.held_out(5)
    assert [len(cases) for cases in asked.values()] == [5, 5, 5]
    assert {case.question.kind for case in asked["detail"]} == {"describe"} and {
        case.question.kind for case in asked["reasoning"]
    } == {"reasoning"}
    assert all(
        case.scene == sample_scene(case.scene.seed, "val", max_objects=4) for cases in asked.values() for case in cases
    )


def test_share_right():
    scene = sample_scene(0, "val", max_objects=4)
    names = {thing.name for thing in scene.things}
    yes = Case(scene, Question("existence", "Is there one?", "Yes.", "yes"))
    describe = Case(scene, Question("describe", "Describe it.", "", ""))
    assert instruct_kinds.share_right([yes, yes], ["Yes, there is.", "No."]) == 50.0
    assert instruct_kinds.share_right([describe], [f"There is a {', a '.join(names)}."]) == 100.0
    assert instruct_kinds.share_right([describe], ["Nothing."]) == 0.0


def test_rows_that_are_there_are_not_run_again(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(
        instruct_kinds, "train_row", lambda folder, kinds, *rest: ran.append(kinds) or {"words a record": 9.0}
    )
    monkeypatch.setattr(
        instruct_kinds, "measure", lambda folder, asked: dict(conversation=1.0, detail=2.0, reasoning=3.0, all=2.0)
    )
    arguments = ["--out", str(tmp_path), "--questions", "2"]
    instruct_kinds.main(arguments)
    rows = json.loads((tmp_path / "rows.json").read_text())
    del rows["rows"]["detail + reasoning"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    ran.clear()
    capsys.readouterr()
    instruct_kinds.main(arguments)
    assert ran == [("detail", "reasoning")]
    assert "| conversation only | 9.0 | 1.0 | 2.0 | 3.0 | 2.0 | 76.5 / 59.8 / 84.9 / 73.8 |" in capsys.readouterr().out
    with pytest.raises(UserError, match="other settings"):
        instruct_kinds.main([*arguments, "--steps", "3"])


@pytest.mark.parametrize("flag", ["--records=2", "--steps=0", "--questions=9999999", "--batch-size=-1"])
def test_numbers_out_of_their_range_are_told(flag, tmp_path):
    with pytest.raises(UserError, match=f"{flag.split('=')[0]} must be from"):
        instruct_kinds.main([flag, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
