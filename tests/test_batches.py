"""Batches: which samples a step sees, what packing changes (nothing but the padding), and that threads change nothing
at all.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from minillava import training, weights
from minillava.bench.train import like_llava
from minillava.errors import UserError
from minillava.inputs.conversation import IGNORE_INDEX, Encoded, encode
from minillava.inputs.processor import Processor
from minillava.training import TrainConfig, train
from minillava.training import run as loop
from minillava.training.batches import Batches, truncated
from minillava.training.check_data import leave_out_unusable, most_image_tokens
from minillava.training.packing import arrange, pack
from minillava.training.samples import JsonSamples, SceneSamples
from minillava.training.tensors import collate

CONTEXT = 1024  # of weights/tiny
WORDS = [
    "the",
    "cat",
    "sits",
    "on",
    "a",
    "red",
    "boat",
    "and",
    "looks",
    "at",
    "sky",
    "where",
    "bird",
    "flies",
    "over",
    "house",
]


@pytest.fixture(scope="module")
def tiny():
    return weights.load("weights/tiny", device="cpu", dtype="float32")


def record(number: int, words: int, picture: bool, turns: int = 1) -> dict:
    """Answers of about `words` words in all, all different."""
    rng = np.random.default_rng(number)
    said = []
    for turn in range(turns):
        question = f"<image>\nWhat is number {number}?" if picture and turn == 0 else f"And {turn}?"
        answer = f"{number} " + " ".join(rng.choice(WORDS, max(1, words // turns)))
        said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": str(number), **({"image": f"{number % 5}.png"} if picture else {}), "conversations": said}


def write(folder, records) -> dict:
    folder.mkdir(exist_ok=True)
    for i in range(5):
        SceneSamples(2)[i].picture.save(folder / f"{i}.png")
    (folder / "data.json").write_text(json.dumps(records))
    return dict(data=str(folder / "data.json"), images=str(folder))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """48 records, every third text alone, of 5 to 90 words: 8 batches of 4 with pictures and 4 without."""
    rng = np.random.default_rng(0)
    records = [record(i, int(rng.integers(5, 90)), picture=i % 3 != 0, turns=1 + i % 3) for i in range(48)]
    return write(tmp_path_factory.mktemp("mixed") / "data", records)


def config(**changes) -> TrainConfig:
    return TrainConfig(**{**dict(stage=2, batch_size=4, seed=3, device="cpu", dtype="float32", workers=0), **changes})


def batches(data: dict, processor, context: int = CONTEXT, **changes) -> Batches:
    return Batches(JsonSamples(data["data"], data["images"]), processor, config(**data, **changes), context)


def numbers_in(batch, tokenizer) -> list[int]:
    """The records of a batch, told by the number that each of their first answers begins with."""
    found = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        for number in range(1, int(mask.max()) + 1):
            answer = [
                i
                for i, label in zip(ids[mask == number].tolist(), labels[mask == number].tolist(), strict=True)
                if label != IGNORE_INDEX
            ]
            found.append(int(tokenizer.decode(answer).split()[0]))
    return found


# ------------------------------------------------------------ length and modality
def test_a_batch_holds_one_modality_and_an_epoch_every_record_once(mixed, tiny):
    _, processor = tiny
    made = batches(mixed, processor)
    seen = Counter()
    text_steps = []
    for step in range(12):
        batch = made[step]
        numbers = numbers_in(batch, processor.tokenizer)
        assert len({number % 3 == 0 for number in numbers}) == 1
        assert (numbers[0] % 3 == 0) == ("pixel_values" not in batch)
        assert "pixel_values" not in batch or len(batch["pixel_values"]) == 4
        text_steps += [step] if numbers[0] % 3 == 0 else []
        seen.update(numbers)
    assert text_steps == [2, 5, 8, 11]  # a third of the steps, evenly spread
    assert seen == Counter(range(48))
    # and so the second
    assert Counter(n for step in range(12, 24) for n in numbers_in(made[step], processor.tokenizer)) == seen


def test_the_order_follows_from_seed_and_step_alone(mixed, tiny):
    _, processor = tiny
    first, again = batches(mixed, processor), batches(mixed, processor)
    order = {step: numbers_in(first[step], processor.tokenizer) for step in range(20)}
    for step in (17, 2, 11, 3):
        assert numbers_in(again[step], processor.tokenizer) == order[step]
    other = batches(mixed, processor, seed=4)
    assert [numbers_in(other[step], processor.tokenizer) for step in range(20)] != list(order.values())


def test_batches_hold_like_lengths(mixed, tiny):
    """Against batches in the records' own order: less than half of the padding, as the tokens themselves count."""
    _, processor = tiny
    masks = [batches(mixed, processor)[step]["attention_mask"] for step in range(12)]
    padding = sum(int((mask == 0).sum()) for mask in masks)
    samples = JsonSamples(mixed["data"], mixed["images"])
    encoded = [
        encode(processor.tokenizer, processor.template, samples[i].turns, 49 * bool(samples[i].picture))
        for i in range(48)
    ]
    as_they_come = sum(
        int((collate([[one] for one in encoded[i : i + 4]])["attention_mask"] == 0).sum()) for i in range(0, 48, 4)
    )
    assert padding < 0.5 * as_they_come


# ------------------------------------------------------------ over-long records
@pytest.mark.parametrize(("context", "kept"), [(200, True), (60, False), (20, False), (1, False)])
def test_a_cut_never_leaves_half_a_picture_to_train_on(tmp_path, tiny, context, kept, capsys):
    """Cut in the answer: trained on. Cut in the question, within the picture's 49 tokens, before them: left out and
    counted.
    """
    _, processor = tiny
    data = write(tmp_path, [record(0, 300, picture=True), record(1, 3, picture=False), record(4, 250, picture=False)])
    samples = JsonSamples(data["data"], data["images"])
    if context == 1:
        with pytest.raises(UserError, match="none of the records can be used"):
            leave_out_unusable(samples, processor, context, needs_picture=False)
        return
    leave_out_unusable(samples, processor, context, needs_picture=False)
    said = capsys.readouterr().out
    assert ("0" in [record["id"] for record in samples.records]) == kept
    assert (
        f"1 of 3 records are left out: they hold no answer within the model's context of {context} tokens" in said
    ) == (not kept)
    assert f"{1 + kept} of 3 records are longer than the model's context and are cut at {context} tokens" in said
    made = Batches(samples, processor, config(batch_size=len(samples)), context)[0]
    assert (made["labels"][:, 1:] != IGNORE_INDEX).any(1).all() and made["labels"].shape[1] <= context
    assert int((made["input_ids"] == processor.image_token_id).sum()) == 49 * len(made.get("pixel_values", ()))


def test_a_record_whose_only_label_is_its_first_token_is_not_trained_on(tiny, tmp_path, monkeypatch):
    """The first token is predicted from nothing; the guard stands where batches are made, whatever the check before let
    pass.
    """
    _, processor = tiny
    data = write(tmp_path, [record(0, 5, picture=False)])
    unsupervised = Encoded([1, 5, 6], [1, IGNORE_INDEX, IGNORE_INDEX], "")
    monkeypatch.setattr("minillava.training.batches.encode", lambda *_: unsupervised)
    with pytest.raises(UserError, match="holds no answer to learn from"):
        batches(data, processor)[0]


def test_truncated_keeps_ids_and_labels_together():
    cut = truncated(Encoded([1, 2, 3], [-100, 2, 3], "x"), 2)
    assert (cut.input_ids, cut.labels) == ([1, 2], [-100, 2])


def test_the_most_image_tokens_are_those_of_the_largest_picture(tiny):
    """2,928 for LLaVA-NeXT, as its table of pictures says (tests/test_anyres.py)."""
    _, processor = tiny
    assert most_image_tokens(processor) == 49
    pinpoints = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    assert most_image_tokens(replace(processor, image_size=336, patch_size=14, image_grid_pinpoints=pinpoints)) == 2928


# ------------------------------------------------------------ packing
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 80), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_rows_hold_every_sample_once_within_the_capacity(lengths, capacity, multiple):
    samples = list(enumerate(lengths))
    rows = pack(samples, lambda sample: sample[1], capacity, multiple)
    assert sorted(sample for row in rows for sample in row) == samples
    assert all(sum(length for _, length in row) <= max(capacity, *lengths, 0) for row in rows)
    assert len(rows) % multiple == 0 or len(rows) == len(samples)
    assert rows == pack(samples, lambda sample: sample[1], capacity, multiple)


@pytest.mark.parametrize("batch_size", [8, 16, 128])
def test_at_least_95_percent_of_a_packed_mix_are_real_tokens(batch_size):
    rng = np.random.default_rng(batch_size)

    def lengths() -> list[int]:
        drawn = like_llava(2, 8 * batch_size, rng)
        return [min(2048, 576 * (kind != "text") + before + answer) for kind, before, answer in drawn]

    real = whole = 0
    for batch in (batch for _ in range(3) for batch in arrange(lengths(), lambda length: length, 8, 2048)):
        rows = [sum(row) for row in batch]
        real, whole = real + sum(rows), whole + len(rows) * max(rows)
        assert max(rows) <= 2048
    assert real / whole > 0.95, real / whole


def test_numbers_labels_and_ids_of_a_packed_row():
    a, b, c = Encoded([4, 5, 6], [4, 5, 6], ""), Encoded([7, 8], [-100, 8], ""), Encoded([9], [9], "")
    batch = collate([[a, b], [c]])
    assert batch["input_ids"].tolist() == [[4, 5, 6, 7, 8], [9, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 2, 2], [1, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 5, 6, -100, 8], [-100] * 5]  # no sample's first token is a target


@pytest.mark.parametrize("template", ["llava_hf", "plain"])  # in "plain" a text alone begins with supervised tokens
def test_packed_loss_and_gradients_are_those_of_the_same_samples_unpacked(tmp_path, tiny, template):
    model, processor = tiny[0].double(), replace(tiny[1], template=template)
    turns = 1 if template == "plain" else 2
    data = write(tmp_path, [record(i, 5 + 9 * i, picture=i % 3 != 0, turns=turns) for i in range(8)])
    packed = batches(data, processor, context=400, pack=True, batch_size=4)
    rows = packed.rows(1)
    assert max(map(len, rows)) > 1
    together = packed[1]
    together["pixel_values"] = together["pixel_values"].double()
    results = []
    for split in (False, True):
        model.zero_grad()
        if split:  # each sample alone, its mean weighted by its number of supervised tokens
            parts = []
            for encoded, index in ((item.encoded, item.index) for row in rows for item in row):
                images = {
                    name: tensor.double()
                    for name, tensor in processor.image_inputs(packed.samples[index].picture).items()
                }
                batch = {**collate([[encoded]]), **images}
                parts.append((training.loss(model, batch), int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())))
            loss = sum(part * count for part, count in parts) / sum(count for _, count in parts)
        else:
            loss = training.loss(model, together)
        loss.backward()
        results.append(
            (loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        )
    model.zero_grad(set_to_none=True), model.float()
    (ours, gradients), (theirs, expected) = results
    assert ours == pytest.approx(theirs, rel=1e-6)  # in float64, but for RMSNorm, which computes in float32
    for name, gradient in expected.items():
        # a key's bias has none, but for rounding
        assert (gradients[name] - gradient).norm() < 1e-5 * gradient.norm() + 1e-12, name


def test_packing_sees_every_record_once_an_epoch_and_mixes_modalities(mixed, tiny):
    _, processor = tiny
    made = batches(mixed, processor, context=300, pack=True, batch_size=6)
    seen = [numbers_in(made[step], processor.tokenizer) for step in range(8)]
    assert Counter(number for numbers in seen for number in numbers) == Counter(range(48))
    again = batches(mixed, processor, context=300, pack=True, batch_size=6)
    assert numbers_in(again[5], processor.tokenizer) == seen[5]
    masks = [made[step]["attention_mask"] for step in range(8)]
    assert sum(int((mask > 0).sum()) for mask in masks) > 0.9 * sum(mask.numel() for mask in masks)
    assert len({len(mask) for mask in masks}) == 1  # as many rows in every step
    assert all(mask.shape[1] <= 300 for mask in masks)


# ------------------------------------------------------------ a thread, or processes
@pytest.mark.parametrize("changes", [{}, {"pack": True}], ids=["grouped", "packed"])
def test_batches_are_bit_equal_with_any_number_of_workers(mixed, tiny, changes):
    _, processor = tiny
    made, state = [], torch.get_rng_state()
    for workers in (0, 1, 3):
        ours = batches(mixed, processor, workers=workers, **changes)
        made.append([ours[step] for step in range(5, 20)])  # resumed at step 5, past the end of an epoch
        ours.close()
    assert torch.equal(torch.get_rng_state(), state)  # of which dropout draws
    for others in made[1:]:
        for ours, theirs in zip(made[0], others, strict=True):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_workers_mistake_is_the_same_sentence_when_its_batch_is_due(tmp_path, tiny, workers):
    _, processor = tiny
    data = write(tmp_path, [record(i, 5, picture=True) for i in range(10)])
    (tmp_path / "3.png").write_bytes(b"no picture")
    made = batches(data, processor, workers=workers, batch_size=1)
    with pytest.raises(UserError) as caught:
        for step in range(10):
            made[step]
    made.close()
    assert (
        str(caught.value)
        == f"{tmp_path / '3.png'} is not a picture that can be read; --skip-broken leaves such records out"
    )
    assert step == next(s for s in range(10) if made.rows(s)[0][0].index % 5 == 3)


def test_left_out_records_are_the_same_with_any_number_of_workers(tmp_path, tiny):
    _, processor = tiny
    data = write(tmp_path / "data", [record(i, 5 + i, picture=True) for i in range(20)])
    (tmp_path / "data" / "3.png").write_bytes(b"no picture")
    found = []
    for workers in (0, 3):
        out = tmp_path / str(workers)
        made = batches(data, processor, workers=workers, skip_broken=True, out=str(out), pack=True)
        found.append([made[step]["input_ids"] for step in range(10)])
        made.close()
        listed = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
        assert sorted(int(row["id"]) for row in listed) == [3, 8, 13, 18]
    assert all(map(torch.equal, *found))


def test_resumed_with_other_workers_packed_is_bit_for_bit_the_run_that_was_not(mixed, tmp_path, monkeypatch):
    settings = dict(
        weights="weights/tiny",
        pack=True,
        max_length=300,
        batch_size=1,
        max_steps=3,
        save_every=2,
        learning_rate=1e-3,
        **mixed,
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    monkeypatch.setattr(training, "sample_answers", lambda *_: {})
    monkeypatch.setattr(loop.Metrics, "show", lambda *_: None)
    train(config(out=str(whole), workers=0, **settings))

    def die(step: int, settings):
        if step == 2:
            raise SystemExit("killed")
        return rate(step, settings)

    rate = loop.learning_rate
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", die)
        with pytest.raises(SystemExit):
            train(config(out=str(broken), workers=3, **settings))
    train(config(out=str(broken), workers=1, resume=True, **settings))
    for name in ("model.safetensors", "checkpoint.safetensors"):
        ours, theirs = load_file(broken / name), load_file(whole / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_that_ends_early_leaves_nobody_behind(mixed, tmp_path, monkeypatch, workers):
    """A process waits for its threads before it ends, and so would this one for batches that nobody needs."""
    # before: of batches that earlier tests left open
    read, before, at_work = Processor.image_inputs, set(threading.enumerate()), []

    def interrupted(model, batch):
        at_work.extend(multiprocessing.active_children())
        raise KeyboardInterrupt

    monkeypatch.setattr(Processor, "image_inputs", lambda self, picture: time.sleep(0.02) or read(self, picture))
    monkeypatch.setattr(training, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config(weights="weights/tiny", out=str(tmp_path / "out"), workers=workers, **mixed))
    assert len(at_work) == workers and not multiprocessing.active_children()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("batch")]


def test_a_killed_process_is_one_sentence_and_what_was_learnt_is_kept(mixed, tmp_path, monkeypatch):
    """Ctrl-C and a request to end, which reach them too, do not end them: the step that is running goes on."""
    signals, compute = iter([signal.SIGINT, signal.SIGTERM, *[0] * 6, signal.SIGKILL]), training.loss

    def compute_and_send(model, batch):
        number = next(signals, 0)
        for process in multiprocessing.active_children():
            os.kill(process.pid, number)
        time.sleep(0.1)
        return compute(model, batch)

    monkeypatch.setattr(training, "loss", compute_and_send)
    monkeypatch.setattr(training, "sample_answers", lambda *_: {})
    monkeypatch.setattr(loop.Metrics, "show", lambda *_: None)
    with pytest.raises(UserError, match="a process of --workers was killed"):
        train(
            config(
                weights="weights/tiny",
                out=str(tmp_path / "out"),
                workers=2,
                max_steps=20,
                save_every=4,
                batch_size=2,
                **mixed,
            )
        )
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) >= 8  # more than are made ahead
    assert (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_processes_end_when_the_training_is_killed(mixed, tiny):
    ours, theirs = multiprocessing.Pipe()

    def make_batches() -> None:
        made = batches(mixed, tiny[1], workers=2)
        made[0]
        theirs.send([process.pid for process in multiprocessing.active_children()])
        time.sleep(60)

    run = multiprocessing.get_context("fork").Process(target=make_batches)
    run.start()
    pids = ours.recv()
    run.kill()
    run.join()
    end = time.monotonic() + 60  # they look every five seconds whether their parent is there
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(map(is_running, pids))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # a zombie has ended
    except OSError:
        return False
