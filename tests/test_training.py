"""The two stages: what learns, on which tokens, and that a run killed and resumed is the run that was not."""

import itertools
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train as command
from minillava import attention, training, weights
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError, run
from minillava.inputs.conversation import IGNORE_INDEX, encode
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.model import Llava
from minillava.training import TrainConfig, loss, train
from minillava.training.batches import Batches
from minillava.training.metrics import Metrics
from minillava.training.samples import JsonSamples, SceneSamples

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [text for i in range(300) for _, text in SceneSamples(2)[i].turns]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["USER: ASSISTANT: " + text for text in TEXTS], 700)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tokenizer):
    """A small tower and a small language model in their folders, as CLIP's and Vicuna's lie in theirs."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(3)
    tower = VisionConfig(
        hidden_size=24, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, image_size=28, patch_size=7
    )
    text = TextConfig(
        tokenizer.vocab_size,
        40,
        56,
        2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    llava = Llava(LlavaConfig(tower, text, tokenizer.image_id))
    weights.save_vision_tower(llava.vision_tower, folder / "vision")
    weights.save_language_model(llava.language_model, tokenizer, folder / "language")
    return {"vision": str(folder / "vision"), "language": str(folder / "language")}


def config(out, stage=1, **changes) -> TrainConfig:
    settings = dict(
        stage=stage,
        out=str(out),
        max_steps=6,
        batch_size=3,
        learning_rate=3e-3,
        save_every=2,
        dtype="float32",
        seed=1,
        device="cpu",
    )
    return TrainConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def stage1(tmp_path_factory, parts):
    out = tmp_path_factory.mktemp("stage1")
    train(config(out, **parts))
    return out


@pytest.fixture(autouse=True)
def no_chart(monkeypatch):
    """It takes longer than so small a training; `stage1` has one."""
    monkeypatch.setattr(Metrics, "_plot", lambda *_: None)


def rows(out) -> list[dict]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def losses(out) -> list[float]:
    return [row["loss"] for row in rows(out) if "loss" in row]


# ------------------------------------------------------------ what learns
def test_stage_1_trains_the_projector_alone(stage1, parts):
    model = weights.load_model(stage1, dtype="float32")
    tower, language = weights.load_vision_tower(parts["vision"]), weights.load_language_model(parts["language"])
    for trained, before in ((model.vision_tower, tower), (model.language_model, language)):
        for (name, a), b in zip(trained.state_dict().items(), before.state_dict().values(), strict=True):
            assert torch.equal(a, b.bfloat16().float()), name
    assert len(losses(stage1)) == 6 and [row["step"] for row in rows(stage1) if "loss" in row] == list(range(6))


def test_stage_2_trains_projector_and_language_model(stage1, tmp_path):
    train(config(tmp_path, 2, weights=str(stage1)))
    before, after = weights.load_model(stage1), weights.load_model(tmp_path)
    changed = {
        name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])
    }
    expected = {name for name in after.state_dict() if name.startswith(("projector.", "language_model."))}
    assert changed == expected


def test_the_attention_is_that_of_the_device_that_trains(stage1, tmp_path, monkeypatch):
    """Not that of the device on which the numbers are read: that is "cpu" here, and "cpu:0" trains."""
    monkeypatch.setattr(weights, "find_attention", lambda _, device: "sdpa" if device.index is None else "eager")
    monkeypatch.setattr(attention, "sdpa_attention", None)  # who calls it fails
    train(config(tmp_path, 2, weights=str(stage1), max_steps=1, device="cpu:0"))


def test_the_loss_falls_when_a_few_samples_are_repeated(stage1, tmp_path):
    samples, folder = SceneSamples(2), tmp_path / "images"
    folder.mkdir()
    records = []
    for i in range(3):
        sample = samples[i]
        sample.picture.save(folder / f"{i}.png")
        values = ["<image>\n" + sample.turns[0][1], *(text for _, text in sample.turns[1:])]
        said = [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]
        records.append({"id": str(i), "image": f"{i}.png", "conversations": said})
    (tmp_path / "data.json").write_text(json.dumps(records))
    out = tmp_path / "out"
    data = dict(data=str(tmp_path / "data.json"), images=str(folder))
    train(config(out, 2, weights=str(stage1), **data, max_steps=150, save_every=150, learning_rate=1e-2))
    assert losses(out)[-1] < 0.4 * losses(out)[0]


# ------------------------------------------------------------ on which tokens
@pytest.mark.parametrize("template", ["llava_hf", "v1"])
def test_the_supervised_ids_are_exactly_the_answers(tokenizer, template):
    for index in range(40):
        turns = SceneSamples(2)[index].turns
        encoded = encode(tokenizer, template, turns, image_tokens=16)
        answers = [text for speaker, text in turns if speaker == "assistant"]
        runs = [
            list(group)
            for paid, group in itertools.groupby(encoded.labels, lambda label: label != IGNORE_INDEX)
            if paid
        ]
        assert [tokenizer.decode(ids).strip() for ids in runs] == answers
        assert all(ids[-1] == tokenizer.eos_id for ids in runs)


def test_in_the_plain_template_the_caption_and_its_newline_are_learnt(tokenizer):
    turns = SceneSamples(1)[4].turns
    encoded = encode(tokenizer, "plain", turns, image_tokens=16)
    assert tokenizer.decode([label for label in encoded.labels if label != IGNORE_INDEX]) == turns[1][1] + "\n"


def tiny_batch(tokenizer, model):
    turns = SceneSamples(2)[1].turns[:4]
    encoded = encode(tokenizer, "llava_hf", turns, image_tokens=model.config.num_image_tokens)
    ids, labels = torch.tensor([encoded.input_ids]), torch.tensor([encoded.labels])
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 28, 28),
    }


def test_loss_is_the_mean_over_supervised_tokens(stage1, tokenizer):
    """Against the formula in float64, over all positions."""
    torch.manual_seed(0)
    model = weights.load_model(stage1, dtype="float32")
    batch = tiny_batch(tokenizer, model)
    logits = model(batch["input_ids"], batch["pixel_values"]).detach().double()
    pairs = [(logits[0, t], label) for t, label in enumerate(batch["labels"][0, 1:].tolist()) if label != IGNORE_INDEX]
    expected = sum(math.log(row.exp().sum()) - row[label].item() for row, label in pairs) / len(pairs)
    assert loss(model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_a_supervised_token_is_an_error(stage1, tokenizer):
    model = weights.load_model(stage1, dtype="float32")
    batch = tiny_batch(tokenizer, model)
    with pytest.raises(ValueError, match="no token of this batch is supervised"):
        loss(model, {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)})


# ------------------------------------------------------------ records as people have them
def dataset(folder, count: int, broken=(), text_only=(), long=()) -> dict:
    """Scenes as LLaVA's JSON, some of their pictures broken, left out, or with an answer longer than the context of 512
    tokens.
    """
    folder.mkdir(exist_ok=True)
    records = []
    for i in range(count):
        question, answer = f"What is in picture {i}?", "There is a cat. " * (200 if i in long else 1)
        record = {
            "id": str(i),
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        }
        if i not in text_only:
            record["image"] = f"{i}.png"
            record["conversations"][0]["value"] = "<image>\n" + question
            SceneSamples(2)[i].picture.save(folder / f"{i}.png")
        if i in broken:
            path = folder / f"{i}.png"
            path.write_bytes(path.read_bytes()[:90])
        records.append(record)
    (folder / "data.json").write_text(json.dumps(records))
    return dict(data=str(folder / "data.json"), images=str(folder))


def test_a_broken_picture_stops_the_training_or_is_left_out_counted_and_listed(stage1, tmp_path, capsys):
    data, out = dataset(tmp_path / "data", 9, broken={4}), tmp_path / "out"
    settings = config(out, 2, weights=str(stage1), **data)
    with pytest.raises(UserError, match=r"4\.png is damaged or cut short: .*; --skip-broken leaves such records out"):
        train(settings)
    train(replace(settings, skip_broken=True, resume=True))
    assert len(losses(out)) == 6
    assert re.search(
        r"^1 record was left out, see .*left_out.jsonl; the first: .*4\.png", capsys.readouterr().out, re.MULTILINE
    )
    (listed,) = map(json.loads, (out / "left_out.jsonl").read_text().splitlines())
    assert (listed["id"], listed["image"]) == ("4", "4.png") and "4.png is damaged" in listed["why"]
    train(replace(settings, skip_broken=True, resume=True))  # finished, and still listed
    assert (out / "left_out.jsonl").exists()
    train(replace(settings, out=str(tmp_path / "again"), **dataset(tmp_path / "mended", 9)))
    assert not (tmp_path / "again" / "left_out.jsonl").exists()


def test_a_broken_picture_in_the_middle_keeps_what_was_learnt_and_may_then_be_left_out(stage1, tmp_path):
    data, out = dataset(tmp_path / "data", 6), tmp_path / "out"
    settings = config(out, 2, weights=str(stage1), batch_size=1, **data)
    train(replace(settings, out=str(tmp_path / "whole")))
    samples = JsonSamples(data["data"], data["images"])
    ((last,),) = Batches(samples, weights.load(stage1)[1], settings, 512).rows(5)
    samples[last.index].picture.write_bytes(b"no picture")
    with pytest.raises(UserError, match="is not a picture"):
        train(settings)
    assert losses(out) == losses(tmp_path / "whole")[:5]
    train(replace(settings, resume=True, skip_broken=True))  # that step changes nothing
    assert losses(out) == losses(tmp_path / "whole")[:5] and (out / "left_out.jsonl").exists()


def test_stage_1_leaves_text_only_records_out_and_says_how_many(parts, tmp_path, capsys):
    data = dataset(tmp_path / "data", 8, text_only={1, 5, 6})
    train(config(tmp_path / "out", 1, **parts, **data))
    assert "3 of 8 records are left out: they have no picture" in capsys.readouterr().out
    with pytest.raises(UserError, match="none of the records can be used"):
        train(config(tmp_path / "none", 1, **parts, **dataset(tmp_path / "texts", 3, text_only={0, 1, 2})))


def test_stage_2_trains_on_text_alone_and_resumes(stage1, tmp_path):
    data = dataset(tmp_path / "data", 7, text_only=set(range(7)))
    train(config(tmp_path / "out", 2, weights=str(stage1), **data))
    train(config(tmp_path / "out", 2, weights=str(stage1), resume=True, **data))
    before, after = weights.load_model(stage1), weights.load_model(tmp_path / "out")
    assert torch.equal(before.projector.linear_1.weight, after.projector.linear_1.weight)


def test_long_records_are_cut_at_the_context_and_counted(stage1, tmp_path, capsys):
    data = dataset(tmp_path / "data", 9, long={0, 7})
    records = json.loads((tmp_path / "data" / "data.json").read_text())
    records[3]["conversations"][0]["value"] = "<image>\n" + "very " * 600 + "long?"  # no room for its answer
    (tmp_path / "data" / "data.json").write_text(json.dumps(records))
    train(config(tmp_path / "out", 2, weights=str(stage1), **data))
    said = capsys.readouterr().out
    assert "1 of 9 records are left out: they hold no answer within the model's context of 512 tokens" in said
    assert "2 of 9 records are longer than the model's context and are cut at 512 tokens" in said


def test_out_may_not_be_a_file(stage1, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be a folder"):
        train(config(tmp_path / "file", 2, weights=str(stage1)))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_request_to_end_ends_the_step_saves_and_says_how_to_go_on(stage1, parts, tmp_path, monkeypatch, capsys, name):
    """Ctrl-C, a job that is stopped, a terminal that is closed."""
    broken, settings, calls = tmp_path / "broken", dict(save_every=100, **parts), itertools.count()

    def loss_and_signal(model, batch):
        if next(calls) == 2:
            signal.raise_signal(getattr(signal, name))
        return loss(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(training, "loss", loss_and_signal)
        with pytest.raises(KeyboardInterrupt):
            train(config(broken, **settings))
    assert "stopped after step 3, which is saved; the same command with --resume goes on" in capsys.readouterr().out
    assert len(losses(broken)) == 3
    train(config(broken, resume=True, **settings))
    assert losses(broken) == losses(stage1)


def test_nohup_is_respected(stage1, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(training, "loss", lambda *inputs: signal.raise_signal(signal.SIGHUP) or loss(*inputs))
        train(config(tmp_path, 2, weights=str(stage1), max_steps=2))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(losses(tmp_path)) == 2


def test_the_projectors_own_learning_rate(stage1, tmp_path):
    """Adam's first step is as long as the learning rate, whatever the gradient: the projector's steps are a hundredth
    of the others'.
    """
    before = weights.load_model(stage1, dtype="float32").state_dict()
    settings = dict(
        weights=str(stage1),
        max_steps=1,
        optimizer="adamw",
        learning_rate=1e-2,
        projector_learning_rate=1e-4,
        warmup_ratio=0.0,
    )
    train(config(tmp_path / "out", 2, **settings))
    after = load_file(tmp_path / "out" / "checkpoint.safetensors")
    moved = {
        name: (tensor - before[name.removeprefix("parameter.")]).abs().max()
        for name, tensor in after.items()
        if name.startswith("parameter.")
    }
    assert {name.split(".")[1] for name in moved} == {"projector", "language_model"}
    for name, length in moved.items():
        assert length.item() == pytest.approx(1e-4 if ".projector." in name else 1e-2, rel=0.02), name


# ------------------------------------------------------------ resume
@pytest.mark.parametrize(("stage", "optimizer"), [(1, "adamw"), (1, "muon"), (2, "muon")])
def test_killed_and_resumed_is_bit_for_bit_the_run_that_was_not(stage1, parts, tmp_path, stage, optimizer, monkeypatch):
    start = {**(parts if stage == 1 else {"weights": str(stage1)}), "optimizer": optimizer}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config(whole, stage, **start))
    calls = itertools.count()

    def die(model, batch):
        if next(calls) == 5:  # after the checkpoint of step 4, in the middle of things
            raise SystemExit("killed")
        return loss(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(training, "loss", die)
        with pytest.raises(SystemExit):
            train(config(broken, stage, **start))
    train(config(broken, stage, resume=True, **start))
    assert losses(broken) == losses(whole)
    for name in ("model.safetensors", "checkpoint.safetensors"):
        ours, theirs = load_file(broken / name), load_file(whole / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_resume_needs_a_checkpoint_of_the_same_run(stage1, parts, tmp_path):
    with pytest.raises(UserError, match=r"has no checkpoint\.safetensors"):
        train(config(tmp_path, resume=True, **parts))
    for changed, words in (
        (dict(learning_rate=1e-5), r"learning_rate 0\.003, not 1e-05"),
        (dict(template="plain"), "template '', not 'plain'"),
        (dict(optimizer="muon"), "optimizer 'adamw', not 'muon'"),
        (dict(seed=2), "seed 1, not 2"),
    ):
        with pytest.raises(UserError, match=words):
            train(config(stage1, resume=True, **{**parts, **changed}))
    with pytest.raises(UserError, match="stage 1, not 2"):
        train(config(stage1, 2, resume=True, weights=str(stage1)))
    (tmp_path / "checkpoint.safetensors").write_bytes((stage1 / "checkpoint.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        train(config(tmp_path, resume=True, **parts))


def test_what_changes_no_result_may_change_at_a_resume(stage1, tmp_path, monkeypatch):
    """After running out of memory, on another machine, or with the data in another folder."""
    first = config(tmp_path / "out", 2, weights=str(stage1), **dataset(tmp_path / "data", 9))
    train(replace(first, out=str(tmp_path / "whole")))
    stopped(first, 3, monkeypatch)
    (tmp_path / "data").rename(tmp_path / "moved")
    shutil.copytree(stage1, tmp_path / "base")
    moved = dict(
        data=str(tmp_path / "moved" / "data.json"), images=str(tmp_path / "moved"), weights=str(tmp_path / "base")
    )
    other = dict(micro_batch_size=1, checkpoint_activations=True, workers=1, device="auto", skip_broken=True)
    train(replace(first, resume=True, **moved, **other))
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def stopped(settings: TrainConfig, step: int, monkeypatch) -> None:
    """As if the run had been killed in this step."""
    from minillava.training import run as run_module
    from minillava.training.optimizers import learning_rate

    def die(at: int, config):
        if at == step:
            raise SystemExit("killed")
        return learning_rate(at, config)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "learning_rate", die)
        with pytest.raises(SystemExit):
            train(settings)


def test_a_run_goes_on_from_what_it_began_from(stage1, tmp_path, monkeypatch):
    """Stage 2 without --weights takes runs/stage1 if that is there: not a new one, when it is resumed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stage1, "runs/stage1")
    settings = config("out", 2, lora_r=2)
    train(replace(settings, out="whole"))
    stopped(settings, 3, monkeypatch)
    shutil.move("runs/stage1", "runs/first")
    train(config("other", 2, weights="runs/first", max_steps=2))
    shutil.copytree("other", "runs/stage1")
    with pytest.raises(UserError, match="was started from other weights"):
        train(replace(settings, resume=True))
    train(replace(settings, resume=True, weights="runs/first"))
    assert losses("out") == losses("whole")


def test_frozen_parts_that_changed_are_noticed(stage1, tmp_path, monkeypatch):
    base = shutil.copytree(stage1, tmp_path / "base")
    settings = config(tmp_path / "out", 2, weights=str(base))
    stopped(settings, 3, monkeypatch)
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if "vision_tower" in name and "fc1.weight" in name)
    save_file({**tensors, name: tensors[name] + 1}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="holds a run that was started from other weights: give it the same ones"):
        train(replace(settings, resume=True))


def test_a_records_wording_is_no_figure(stage1, tmp_path):
    """Questions that read as the names of figures, and one that a terminal would obey."""
    data = dataset(tmp_path / "data", 3, text_only={0, 1, 2})
    records = json.loads((tmp_path / "data" / "data.json").read_text())
    for record, question in zip(records, ("loss", "step", "self"), strict=True):
        record["conversations"][0]["value"] = question
    (tmp_path / "data" / "data.json").write_text(json.dumps(records))
    train(config(tmp_path / "out", 2, weights=str(stage1), save_every=1, **data))
    found = rows(tmp_path / "out")
    assert all(isinstance(row["step"], int) and isinstance(row.get("loss", 0.0), float) for row in found)
    assert {question for row in found for question in row.get("answers", ())} <= {"loss", "step", "self"}


# ------------------------------------------------------------ the command
def test_what_it_leaves_is_a_weights_folder(stage1):
    model, processor = weights.load(stage1)
    assert isinstance(processor, Processor) and model.config.projector_type == "mlp2x_gelu"
    assert (stage1 / "loss.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say which stage"),
        (["--stage", "3"], "invalid choice: 3"),
        (["--stage", "two"], "invalid int value"),
        (["--stage", "1", "--vision", "nowhere", "--language", "nowhere"], "There is no weights folder nowhere"),
        (["--stage", "1", "--resume", "--out", "{tmp}/new"], "there is nothing to go on from"),
        (["--stage", "2", "--weights", "{tmp}"], "has no config.json"),
        (["--stage", "1", "--data", "{tmp}/gone.json"], "cannot be read"),
        (["--stage", "1", "--max-steps", "0"], "--max-steps must be"),
        (["--stage", "1", "--batch-size", "-3"], "--batch-size must be"),
        (["--stage", "1", "--learning-rate", "nan"], "--learning-rate must be"),
        (["--stage", "1", "--save-every", "0"], "--save-every must be"),
        (["--stage", "1", "--dtype", "int3"], "--dtype must be"),
        (["--stage", "1", "--template", "v9"], "no conversation template 'v9'"),
        (["--stage", "1", "--optimizer", "sgd"], "invalid choice: 'sgd'"),
        (["--stage", "2", "--vision", "{tmp}"], "--vision and --language go together"),
        (["--stage", "1", "--vision", "{tmp}"], "--vision and --language go together"),
        (["--stage", "2", "--weights", "{tmp}", "--vision", "a", "--language", "b"], "--weights names a whole LLaVA"),
        (["--stage", "2", "--weights", "{tmp}", "--projector", "linear"], "are for a new projector"),
        (["--stage", "1", "--images", "{tmp}"], "--images needs --data"),
        (["--stage", "1", "--check-data"], "--check-data needs --data"),
        (
            ["--stage", "1", "--data", "a.json", "--cache-features", "b", "--with", "c.py"],
            "--cache-features would keep what a student's part",
        ),
        (["--stage", "1", "--workers", "-1"], "--workers must be 0 or more"),
        (["--stage", "1", "--seed", "-5"], "--seed must be 0 or more"),
        (["--stage", "1", "--learning-rate", "1e308"], "--learning-rate must be above 0 and at most"),
        (["--stage", "2", "--weights", "{tmp}", "--lora-r", "1000000000"], "--lora-r must be 0 or more and below"),
        (["--stage", "1", "--device", "cuda:7"], "was asked for, but this machine has"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(arguments, words, parts, tmp_path, capsys, monkeypatch):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    if "--stage" in arguments and "--weights" not in arguments and "--vision" not in arguments:
        arguments += ["--vision", parts["vision"], "--language", parts["language"]]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    assert run(command.main, "train.py") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("train.py: error: ") and words in said[0]
    assert not (tmp_path / "out").exists()


def test_the_command_as_a_process(parts, tmp_path):
    arguments = [
        "--stage",
        "1",
        "--vision",
        parts["vision"],
        "--language",
        parts["language"],
        "--out",
        tmp_path / "out",
        "--max-steps",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "out")) == 2
