"""LLaVA's JSON: what is read, what is refused and in which words; batches of like length."""

import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minillava.errors import UserError
from minillava.inputs.conversation import IGNORE_INDEX, Encoded
from minillava.inputs.image import open_image
from minillava.training.packing import arrange, batches_of
from minillava.training.samples import Epochs, Group, JsonSamples, SceneSamples
from minillava.training.tensors import collate


def record(**changes) -> dict:
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    return {"id": "7", "image": "a.png", "conversations": said, **changes}


@pytest.fixture
def images(tmp_path):
    Image.new("RGB", (5, 7)).save(tmp_path / "a.png")
    return tmp_path


def read(tmp_path, records) -> JsonSamples:
    path = tmp_path / "data.json"
    path.write_text(records if isinstance(records, str) else json.dumps(records))
    return JsonSamples(path, tmp_path)


def test_a_record_becomes_turns_and_a_picture(images):
    samples = read(images, [record(), {"conversations": said(("human", "Hi"), ("gpt", "Yo"))}])
    assert samples[0].turns == [("user", "What is it?"), ("assistant", "A cat.")]
    assert samples[0].picture == images / "a.png"
    assert samples[1].turns == [("user", "Hi"), ("assistant", "Yo")] and samples[1].picture is None


def said(*pairs) -> list[dict]:
    return [{"from": speaker, "value": value} for speaker, value in pairs]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ({"a": 1}, "must hold a list of records"),
        ([1], "must hold a list of records"),
        ([], "holds no records"),
        ([{"id": 1}], "has no conversations"),
        ([record(conversations=[])], "has no conversations"),
        ([record(conversations=said(("gpt", "A"), ("human", "<image>")))], "turn 1 is from 'gpt' where 'human' is due"),
        ([record(conversations=said(("human", "<image>"), ("bot", "A")))], "turn 2 is from 'bot'"),
        ([record(conversations=said(("human", "<image>")))], "the last question has no answer"),
        ([record(conversations=said(("human", "What?"), ("gpt", "A")))], "it stands 0 times"),
        ([record(conversations=said(("human", "<image><image>"), ("gpt", "A")))], "it stands 2 times"),
        ([record(image=["a.png", "a.png"])], "it names 2 pictures"),
        ([record(images=["a.png", "b.png"], image=None)], "it names 2 pictures"),
        ([record(image={"bytes": "x"})], "must be the name of a file"),
        ([record(image="data:image/png;base64," + "A" * 40_000)], "its image is a data: address"),
        ([record(image="https://example.org/a.png")], "its image is a https: address"),
        ([record(image="..\\a.png")], "must not hold '..'"),
        ('{"conversations": []}\n{"conversations": [}', "line 2, is not valid JSON"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        ([record(image="../a.png")], "must not hold '..'"),
        ([record(image="/etc/passwd")], "must be relative"),
    ],
)
def test_what_is_wrong_is_said(images, records, words):
    with pytest.raises(UserError, match=words.replace(".", r"\.")) as error:
        read(images, records)
    assert len(str(error.value)) <= 200


def test_the_broken_record_is_named(images):
    with pytest.raises(UserError, match=r"record 1 \(id 'x'\)"):
        read(images, [record(), record(id="x", conversations=[])])


def test_missing_pictures_are_counted_the_first_named_and_left_out_when_asked(images, capsys):
    records = [record(), record(id="x", image="gone.png"), record(), record(image="no/where.png")]
    with pytest.raises(
        UserError, match=r"2 of 4 pictures are not in .*record 1 \(id 'x'\): gone\.png; --skip-broken"
    ) as raised:
        read(images, records)
    assert len(str(raised.value)) < 200 + len(str(images))
    samples = JsonSamples(images / "data.json", images, skip_broken=True)
    assert len(samples) == 2 and "2 of 4 pictures are not in" in capsys.readouterr().out
    (images / "data.json").write_text(json.dumps(records[1:2]))
    with pytest.raises(UserError, match="none of the records"):
        JsonSamples(images / "data.json", images, skip_broken=True)


def test_folders_are_listed_once_and_links_followed(images, tmp_path_factory, monkeypatch):
    outside = tmp_path_factory.mktemp("train2017")
    for i in range(30):
        Image.new("RGB", (3, 3)).save(outside / f"{i}.png")
    (images / "coco").symlink_to(outside)
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(str(folder)) or scandir(folder))
    samples = read(images, [record(image=f"coco/{i}.png") for i in range(30)])
    assert samples[29].picture == images / "coco" / "29.png" and listed == [str(images / "coco")]


def test_the_folder_of_pictures_may_be_made_of_links(images, tmp_path_factory):
    """`coco/train2017` is a link in everyone's set-up."""
    outside = tmp_path_factory.mktemp("outside")
    Image.new("RGB", (3, 3)).save(outside / "b.png")
    (images / "coco").mkdir()
    (images / "coco" / "train2017").symlink_to(outside)
    (images / "c.png").symlink_to(outside / "b.png")
    samples = read(images, [record(image="coco/train2017/b.png"), record(image="c.png")])
    assert [open_image(samples[i].picture).size for i in (0, 1)] == [(3, 3)] * 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("lines", [True, False])
def test_every_way_to_write_records(images, encoding, lines):
    words = said(("human", "é"), ("gpt", "ü"))
    records = [
        record(),
        record(image=["a.png"]),
        record(image=None, images=["a.png"]),
        record(image=[], conversations=words),
    ]
    text = (
        "\r\n\r\n".join(map(json.dumps, records)) + "\n" if lines else json.dumps(records, indent=1, ensure_ascii=False)
    )
    (images / "data.json").write_bytes(text.encode(encoding))
    samples = JsonSamples(images / "data.json", images)
    assert [samples[i].picture for i in range(4)] == [images / "a.png"] * 3 + [None]
    assert samples[3].turns == [("user", "é"), ("assistant", "ü")]


def test_one_record_alone(images):
    assert (
        len(read(images, json.dumps(record())).records)
        == len(read(images, json.dumps(record(), indent=2)).records)
        == 1
    )


def test_lines_end_in_newlines_alone_and_are_counted_as_editors_count_them(images):
    words = said(("human", "a\u2028b\x85c\x0b"), ("gpt", "d\u2029e\x1c"))
    line = json.dumps({"conversations": words}, ensure_ascii=False)
    samples = read(images, f"\n\n{line}\r\n\n{line}\n")
    assert samples[1].turns == [("user", "a\u2028b\x85c\x0b"), ("assistant", "d\u2029e\x1c")] and len(samples) == 2
    for wrong in ("{", '{"a": ' + "[" * 100_000, '{"a": ' + "9" * 5000 + "}"):
        with pytest.raises(UserError, match=r"data\.json, line 5, is not valid JSON"):
            read(images, f"\n\n{line}\n{line}\n{wrong}\n")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 400, "-0.0"])
def test_odd_numbers_harm_nothing(images, number):
    samples = read(images, json.dumps([{**record(), "id": "N", "score": "N"}]).replace('"N"', number))
    assert samples[0].picture == images / "a.png" and len(samples.label(0)["id"]) <= 40
    with pytest.raises(UserError, match="must be the name of a file"):
        read(images, json.dumps([record(image="N")]).replace('"N"', number.replace("-0.0", "1")))


def test_half_a_surrogate_pair_is_mended(images):
    text = json.dumps(
        [record(id="\ud800", conversations=said(("human", "<image>\udc00 a"), ("gpt", "\ud83d\ude00 b")))]
    )
    for lines in (text, text[1:-1] + "\n" + text[1:-1]):
        samples = read(images, lines)
        assert samples[0].turns == [("user", "\ufffd a"), ("assistant", "😀 b")]
        assert samples.label(0)["id"] == "\ufffd"


# ------------------------------------------------------------ pictures by other names
def test_pictures_are_found_as_other_systems_write_them(images):
    (images / "Ordner ü").mkdir()
    Image.new("RGB", (3, 3)).save(images / "Ordner ü" / "b 1.png")
    names = ["Ordner ü\\b 1.png", "Ordner u\u0308/b 1.png", "Ordner%20%C3%BC/b%201.png", "Ordner ü/b 1.png"]
    samples = read(images, [record(image=name) for name in names] + [record()])
    assert [samples[i].picture for i in range(5)] == [images / "Ordner ü" / "b 1.png"] * 4 + [images / "a.png"]
    samples.leave_out({0, 1, 2, 3})
    assert samples[0].picture == images / "a.png"
    for name in ("..%2Fa.png", "%2e%2e/a.png", "%2Fetc%2Fpasswd"):
        with pytest.raises(UserError, match="1 of 1 pictures are not in"):
            read(images / "Ordner ü", [record(image=name)])


HELD = said(("human", "What is a cat?"), ("gpt", "An animal."))
ASKED = [
    said(("human", question), ("gpt", "A cat.")) for question in ("<image>\nWhat?", "What?\n<video> ", "<|image_1|>")
]


@pytest.mark.parametrize(
    ("changes", "sign"),
    [
        ({"image_path": "a.png"}, "image_path"),
        ({"img": ["a.png"]}, "img"),
        ({"picture": {"path": "a.png"}}, "picture"),
        ({"imageFile": "a.png"}, "imageFile"),
        ({"video": "a.mp4"}, "video"),
        ({"picture_url": "http://x/a.png", "image": None}, "picture_url"),
        ({"conversations": ASKED[0]}, "<image>"),
        ({"conversations": ASKED[1]}, "<video>"),
        ({"conversations": ASKED[2]}, "<|image_1|>"),
        ({"conversations": ASKED[0], "images": []}, "<image>"),
    ],
)
def test_records_whose_pictures_stand_under_another_name_are_told(images, capsys, changes, sign):
    blind, text = {"id": "7", "conversations": HELD, **changes}, {"conversations": HELD}
    with pytest.raises(UserError, match=r"9 of 10 records speak of pictures that are not under 'image'") as error:
        read(images, [text] + [blind] * 9)
    assert f"(record 1 (id '7'): {sign}): rename the key" in str(error.value)
    assert len(read(images, [text, text, record(), blind])) == 4
    note = "note: 1 of 4 records speak of pictures that are not under 'image' (record 3 (id '7'):"
    assert f"{note} {sign}): they count as text alone\n" == capsys.readouterr().out


def test_records_of_text_alone_may_speak_of_pictures(images, capsys):
    questions = (
        "What does <image> mean in HTML?",
        '<img src="a.png"> is a tag',
        "Is <image> a tag?",
        "A <video>, please?",
    )
    words = [
        {"conversations": said(("human", q), ("gpt", "<image>")), "image": "", "image_width": 0} for q in questions
    ]
    assert len(read(images, words)) == 4 and capsys.readouterr().out == ""


def test_a_typed_image_is_text_outside_the_first_question(images):
    turns = said(
        ("human", "What?\n<image>"), ("gpt", "An <image>."), ("human", "Is <image> a tag?"), ("gpt", "<image><image>")
    )
    samples = read(images, [record(conversations=turns), record(image=None)])
    assert samples[0].turns == [
        ("user", "What?"),
        ("assistant", "An <image>."),
        ("user", "Is <image> a tag?"),
        ("assistant", "<image><image>"),
    ]
    assert (
        samples[1].turns == [("user", "<image>\nWhat is it?"), ("assistant", "A cat.")] and samples[1].picture is None
    )


def of_step(samples, step: int, batch_size: int, seed: int) -> list[int]:
    """The samples of a step, before they are sorted by length."""
    group, place = samples.group(step, batch_size, seed)
    return [row[0] for row in arrange(list(group.indices), lambda _: 0, group.num_batches)[place]]


@given(st.integers(1, 70), st.integers(0, 70), st.integers(1, 20), st.booleans(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_every_sample_once_an_epoch_and_never_twice_in_a_batch(with_picture, text_only, batch_size, mixed, epoch):
    samples = Epochs(np.array([True] * with_picture + [False] * text_only))
    steps = samples.steps_per_epoch(batch_size, mixed)
    batches = [Counter() for _ in range(steps)]
    for at in range(steps):
        group, place = samples.group(epoch * steps + at, batch_size, seed=5, mixed=mixed)
        rows = arrange(list(group.indices), lambda _: 0, group.num_batches)[place]
        batches[at] = Counter(index for row in rows for index in row)
        assert 1 <= sum(batches[at].values()) <= batch_size
        assert mixed or len({bool(samples.has_picture[index]) for index in batches[at]}) == 1
    assert all(max(batch.values()) == 1 for batch in batches)
    assert sum(batches, Counter()) == Counter(range(with_picture + text_only))


def test_each_epoch_and_each_seed_has_an_order_of_its_own(images):
    samples = read(images, [record(id=str(i)) for i in range(12)])
    epochs = [[i for step in (3 * e, 3 * e + 1, 3 * e + 2) for i in of_step(samples, step, 4, 5)] for e in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert of_step(samples, 1, 4, 5) == epochs[0][4:8]  # asked out of order
    assert of_step(samples, 1, 4, 6) != epochs[0][4:8]


def test_the_order_of_the_batches_follows_from_the_seed():
    batches = [batches_of(Group((seed, 0, 0, 0), range(64), 8), list(range(64)), lambda i: i) for seed in (1, 1, 2)]
    assert batches[0] == batches[1] != batches[2] and sorted(batches[0]) == sorted(batches[2])


def test_scene_samples_are_the_same_each_time_and_differ_by_seed():
    samples = SceneSamples(2)
    assert samples[5].turns == SceneSamples(2)[5].turns
    assert not set(of_step(samples, 0, 9, 0)) & set(of_step(samples, 0, 9, 1))
    assert of_step(samples, 1, 9, 0)[0] == of_step(samples, 0, 9, 0)[-1] + 1


def test_batches_hold_every_sample_once_and_like_lengths():
    lengths = torch.randint(1, 90, (8 * 5,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [[row[0] for row in rows] for rows in arrange(lengths, lambda length: length, 8)]
    ordered = sorted(lengths)
    assert batches == [ordered[i : i + 5] for i in range(0, 40, 5)]


def test_collate_pads_on_the_right():
    batch = collate([[Encoded([4, 5, 6], [-100, 5, 6], "")], [Encoded([7], [7], "")]])
    assert batch["input_ids"].tolist() == [[4, 5, 6], [7, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 5, 6], [IGNORE_INDEX] * 3]  # nothing comes before a first token
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
