"""The exercises: stubs say that they are stubs, solutions pass, and every known mistake is told its own sentence."""

import ast
import doctest
import json
import math
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import chat
from lessons import mutate, swap
from lessons.check import ROOT
from lessons.examine import examine
from lessons.mistakes import MISTAKES
from lessons.solutions import FILES, solution
from lessons.trials import TRIALS
from lessons.trials.e07_merge import TextOnly
from lessons.trials.e11_trainable import small_llava
from lessons.whole import CAT, QUESTION, TINY, attempt, product, product_of, quiet, run_of, run_training, verdict
from minillava import language_model, training, vision
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError, run
from minillava.kv_cache import KVCache
from minillava.pretrain import language
from minillava.pretrain import vision as pretrain_vision
from minillava.training import recipes

torch.set_num_threads(1)
KEYS = list(FILES)
TRAINED = ("label_mask", "loss", "schedule", "trainable", "contrastive")
PAIRS = [(key, mistake) for key in KEYS for mistake in MISTAKES[key]]


def stub_sentences(key: str) -> list[str]:
    tree = ast.parse(FILES[key].read_text(encoding="utf-8"))
    return [node.exc.args[0].value for node in ast.walk(tree) if isinstance(node, ast.Raise)]


def solution_file(folder: Path, key: str) -> Path:
    """A student's file that does all right: the product's own parts under the names that are asked for."""
    lines = [f"REPLACES = {tuple(solution(key))!r}", "from lessons.swap import original"]
    lines += [f"{swap.short(target)} = original({target!r})" for target in solution(key)]
    path = folder / FILES[key].name
    path.write_text("\n".join(lines) + "\n")
    return path


# ------------------------------------------------------------ the stubs
def test_every_exercise_has_its_trial_and_its_mistakes():
    assert KEYS and set(TRIALS) == set(KEYS) == set(MISTAKES)
    assert {key: FILES[key].stem for key in KEYS} == {
        key: trial.__name__.rpartition(".")[2] for key, trial in TRIALS.items()
    }


@pytest.mark.parametrize("key", KEYS)
def test_a_stub_has_one_docstring_and_says_what_it_replaces(key):
    tree = ast.parse(FILES[key].read_text(encoding="utf-8"))
    text = ast.get_docstring(tree)
    assert "About" in text and "line" in text and f"python -m lessons.check {key}" in text and text.count(">>>") == 2
    assert not any(ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    assert all(target.startswith(("minillava.", "lessons.bpe.")) for target in swap.targets_of(FILES[key]))


@pytest.mark.parametrize("key", KEYS)
def test_the_worked_example_is_true_of_the_solution(key):
    names = {"torch": torch, "math": math, "model": TextOnly() if key == "merge" else small_llava(), "KVCache": KVCache}
    names |= {
        "TextConfig": TextConfig,
        "VisionConfig": VisionConfig,
        "LlavaConfig": LlavaConfig,
        "LoopConfig": recipes.LoopConfig,
    }
    names |= {"language_model": small_llava().language_model}
    names |= {swap.short(target): part for target, part in solution(key).items()}
    text = ast.get_docstring(ast.parse(FILES[key].read_text(encoding="utf-8")))
    example = doctest.DocTestParser().get_doctest(text.partition("About")[0], names, key, None, 0)
    said = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("key", KEYS)
def test_a_stub_says_that_it_is_not_written(key):
    parts = swap.parts_of(swap.load_file(FILES[key]), swap.targets_of(FILES[key]))
    (line,) = examine(key, parts, FILES[key])
    assert not line.ok and line.sentence.startswith("Not written yet: ")
    assert any(sentence in line.sentence for sentence in stub_sentences(key))


# ------------------------------------------------------------ steps 1 to 3
@pytest.mark.parametrize("key", KEYS)
def test_a_solution_passes(key):
    assert [line.text for line in examine(key, solution(key), whole=False) if not line.ok] == []


@pytest.mark.parametrize("key", KEYS)
def test_there_are_at_least_four_mistakes_each_with_a_sentence(key):
    sentences = [mistake.sentence for mistake in MISTAKES[key]]
    assert len(sentences) == len(set(sentences)) >= 4 and all(15 < len(sentence) < 200 for sentence in sentences)
    assert {mistake.name for mistake in MISTAKES[key]} == {swap.short(target) for target in solution(key)}


@pytest.mark.parametrize(("key", "mistake"), PAIRS, ids=[f"{key}-{number}" for number, (key, _) in enumerate(PAIRS)])
def test_a_known_mistake_is_told_its_own_sentence(key, mistake):
    parts = {
        target: mistake.part if swap.short(target) == mistake.name else part for target, part in solution(key).items()
    }
    last = list(examine(key, parts, whole=False))[-1]
    assert not last.ok and last.sentence == mistake.sentence


def test_an_unknown_mistake_is_shown_with_its_place():
    parts = {"minillava.language_model.rms_norm": lambda x, weight, eps: torch.zeros_like(x)}
    *_, last = examine("rms_norm", parts, whole=False)
    assert not last.ok and last.sentence.startswith("on x of 2 x 4") and "it gives 0 at [" in last.sentence
    parts = {"minillava.language_model.rms_norm": lambda x, weight, eps: [1]}
    assert "it gives a list where a tensor is due" in list(examine("rms_norm", parts, whole=False))[-1].sentence


# ------------------------------------------------------------ step 4
@pytest.mark.parametrize("key", [key for key in KEYS if key not in TRAINED])
def test_the_whole_model_runs_on_a_solution(key):
    right, sentence = verdict(key, attempt(key, solution(key)), product(key))
    assert right and "called" in sentence and "the model says" in sentence
    assert all(product(key)[1])


@pytest.mark.parametrize("key", ["loss", "contrastive"])
def test_a_training_runs_on_a_solution_and_leaves_no_folder(key, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    right, sentence = verdict(key, attempt(key, solution(key)), product(key))
    assert right, sentence
    assert all(product(key)[1]) and not list(tmp_path.glob("minillava*"))


def test_a_wrong_part_is_heard():
    wrong = next(mistake.part for mistake in MISTAKES["rope"] if "interleaved" in mistake.sentence)
    parts = {**solution("rope"), "minillava.language_model.apply_rope": wrong}
    *_, last = examine("rope", parts)
    assert (
        last.step == 4
        and not last.ok
        and "differ by" in last.sentence
        and "on this part the model says" in last.sentence
    )


def test_a_wrong_loss_is_heard():
    wrong = next(mistake.part for mistake in MISTAKES["loss"] if "not shifted" in mistake.sentence)
    right, sentence = verdict(
        "loss", attempt("loss", {"minillava.training.loss.next_token_loss": wrong}), product("loss")
    )
    assert not right and "on this part the model says" in sentence


# ------------------------------------------------------------ swapping
def test_copies_are_replaced_and_come_back():
    loss_module = sys.modules["minillava.training.loss"]  # `training.loss` is the function
    targets = ["minillava.training.loss.next_token_loss", "minillava.vision.VisionLayer", "minillava.generation.sample"]
    before = [loss_module.next_token_loss, vision.VisionLayer]
    fakes = {targets[0]: lambda *_: 7, targets[1]: type("Mine", (torch.nn.Module,), {}), targets[2]: lambda *_: 8}
    with swap.replaced(fakes) as calls:
        assert loss_module.next_token_loss() == training.next_token_loss() == language.next_token_loss() == 7
        assert pretrain_vision.VisionLayer is vision.VisionLayer is fakes[targets[1]]
        assert calls[targets[0]] == 3
    assert (
        before
        == [training.next_token_loss, pretrain_vision.VisionLayer]
        == [loss_module.next_token_loss, vision.VisionLayer]
    )
    assert language.next_token_loss is loss_module.next_token_loss


def test_an_exception_restores():
    before = language_model.apply_rope
    with pytest.raises(ZeroDivisionError), swap.replaced({"minillava.language_model.apply_rope": lambda *_: 1 / 0}):
        language_model.apply_rope()
    assert language_model.apply_rope is before


def test_the_model_runs_on_all_parts_at_once(tmp_path, capsys):
    """Every target is looked up when it is called: one answer and one step of training reach them all."""
    files = [solution_file(tmp_path, key) for key in KEYS]
    chat.main(["--image", str(CAT), QUESTION, "--weights", str(TINY), "--max-new-tokens", "20"])
    expected = capsys.readouterr().out
    given = [argument for file in files for argument in ("--with", str(file))]
    chat.main(["--image", str(CAT), QUESTION, "--weights", str(TINY), "--max-new-tokens", "20", *given])
    assert capsys.readouterr().out == expected
    called = {
        target for key in ("rope", "sample", "contrastive") for target, n in product_of(run_of(key))[1].items() if n
    }
    with quiet():
        everything = {target: part for key in KEYS for target, part in solution(key).items()}
        called |= {target for target, count in run_training(everything)[1].items() if count}
    assert called == set(everything)


# ------------------------------------------------------------ --with
def test_chat_with_an_unfinished_exercise_is_one_sentence(capsys):
    arguments = ["--image", str(CAT), QUESTION, "--weights", str(TINY), "--with", str(FILES["rope"])]
    assert run(lambda: chat.main(arguments), "chat.py") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "e05_rope.py is not finished: rope_tables has to compute" in error


FILE = 'REPLACES = "minillava.language_model.rms_norm"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("REPLACES = 3\n", "must say what it replaces"),
        ("x = 1\n", "must say what it replaces"),
        ('REPLACES = "minillava.language_model.no_such_thing"\n', "is not in the product"),
        ('REPLACES = "os.nonsense.x"\n', "is not in the product"),
        (FILE, "has no function rms_norm"),
        (FILE + "rms_norm = 3\n", "must be a function, but it is of the type int"),
        (
            FILE + "def rms_norm(x, weight, eps):\n    return undefined\n",
            "rms_norm raised NameError: name 'undefined' is not defined (line 3)",
        ),
        (FILE + "def rms_norm(x, weight, eps):\n    return None\n", "the model cannot run on"),
        (FILE + "def rms_norm(x, weight eps):\n", "line 2: Python cannot read this"),
        (FILE + "1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero (line 2)"),
        (FILE + "raise SystemExit(3)\n", "cannot be imported: SystemExit"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=r"mine\.py|REPLACES") as error:
        chat.main(["--image", str(CAT), "Is there a cat?", "--weights", str(TINY), "--with", str(file)])
    assert sentence in str(error.value)


def test_two_files_for_one_part(tmp_path):
    files = [tmp_path / "a.py", tmp_path / "b.py"]
    for file in files:
        file.write_text(FILE + "def rms_norm(x, weight, eps):\n    return x\n")
    with pytest.raises(UserError, match=r"both .*a\.py and .*b\.py replace"), swap.student_parts(map(str, files)):
        pass
    with pytest.raises(UserError, match="there is no file"), swap.student_parts([str(tmp_path / "none.py")]):
        pass


# ------------------------------------------------------------ mutants
@pytest.mark.parametrize("key", ["rope", "rms_norm", "schedule", "label_mask", "bpe", "loss"])
def test_a_sample_of_the_mutants_is_caught(key, monkeypatch):
    """All of them: python -m lessons.mutate."""
    monkeypatch.setattr(mutate, "SECONDS", 2)
    made, known = list(mutate.mutants(key)), mutate.reasons()
    left = [each for each in made[:: max(1, len(made) // 6)] if not mutate.caught(each, whole=False)]
    assert [each for each in left if (key, each.name, each.change) not in known] == []


def test_the_listed_survivors_are_mutants_and_few():
    made = {(each.key, each.name, each.change) for key in KEYS for each in mutate.mutants(key)}
    listed = json.loads(mutate.SURVIVORS.read_text(encoding="utf-8"))
    assert set(mutate.reasons()) <= made and len(listed) <= 0.05 * len(made)
    assert all(len(each["why"]) > 20 for each in listed)


def test_the_exercises_are_where_the_lessons_say():
    assert Path(chat.__file__).resolve().parent == ROOT
