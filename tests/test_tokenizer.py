"""The ids are the official ones, what is typed never becomes a control token, and no half character is ever shown."""

import json
import time

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizerFast, PreTrainedTokenizerFast

from minillava.errors import UserError
from minillava.inputs.tokenizer import BYTES, LARGEST, Control, StreamDecoder, Tokenizer
from minillava.inputs.tokenizer_spec import REGEXES

WORDS = (
    "a cat sat on the mat . the cat is grey , USER : what is this ? ASSISTANT : it is a cat \n 12 naïve 🐱 🐱 yes no"
)
IMAGE, EOS = Control("image"), Control("eos")
KINDS = ("prepend", "metaspace_first", "metaspace_always", "byte_level")
# Everything that UTF-8 can hold, without the "▁" that stands for a space and the private characters that no text may
# use.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="▁", max_codepoint=0x10EFFF)
texts = st.text(characters | st.sampled_from(list(" \n.:</s>🐱aé")), max_size=30) | st.sampled_from(
    ["</s>", "<image>", "a<s>b", "<0x41>", "<unk></s> <pad>", "USER: <image>\n", "👩‍👩‍👧 e\u0301"]
)


def build(kind: str) -> Tokenizer:
    """A small tokenizer of the kind that LLaMA's, transformers' and SmolLM2's files are."""
    byte_level = kind == "byte_level"
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE(byte_fallback=not byte_level, unk_token="<unk>", fuse_unk=not byte_level)
    )
    trained_on = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if byte_level
        else pre_tokenizers.Metaspace(prepend_scheme="first")
    )
    model.pre_tokenizer = trained_on
    names = ["<unk>", "<s>", "</s>"] + ([] if byte_level else BYTES)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator([WORDS.replace("🐱", "") if not byte_level else WORDS] * 4, trainer)
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if kind == "prepend":
        model.pre_tokenizer = pre_tokenizers.Sequence([])
        model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif byte_level:
        model.decoder = decoders.ByteLevel()
    else:
        scheme = kind.removeprefix("metaspace_")
        model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    model.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    spec = json.loads(model.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < 3]
    spec["pre_tokenizer"] = None if kind == "prepend" else spec["pre_tokenizer"]
    return Tokenizer(spec).extended("<image>", "<pad>")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind):
    return build(kind)


@pytest.fixture(scope="module")
def official(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "tokenizer.json"
    tokenizer.save(path)
    return PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train([WORDS, "a cat.", "a cat, a dog"] * 4, 420)


# ------------------------------------------------------------ against transformers
@pytest.mark.parametrize(
    "parts",
    [
        ["USER: what is this? ASSISTANT:"],
        ["USER: ", IMAGE, "\nwhat is this? ASSISTANT: it is a cat", EOS, "USER: yes 🐱 12 ASSISTANT: no", EOS],
        ["USER: ", IMAGE, IMAGE, IMAGE, "\nnaïve"],
        [IMAGE, "a cat\n"],
        [IMAGE, " a cat\n", EOS, EOS, " cat"],
        [IMAGE, "🐱"],
        ["  two  spaces  ", IMAGE, "  "],
    ],
)
def test_a_prompt_has_the_official_ids(tokenizer, official, parts):
    text = "".join({IMAGE: "<image>", EOS: "</s>"}.get(part, part) for part in parts)
    ids, _ = tokenizer.encode(parts)
    assert ids == official(text, add_special_tokens=False).input_ids
    assert [tokenizer.bos_id, *ids] == official(text).input_ids and tokenizer.adds_bos
    assert tokenizer.decode(ids) == official.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids, skip_special=False) == official.decode(ids, skip_special_tokens=False)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts=st.lists(st.text(characters.filter(lambda c: c not in "<"), max_size=12), min_size=1, max_size=4))
def test_any_text_between_controls_has_the_official_ids(tokenizer, official, parts):
    ours = [piece for part in parts for piece in (part, IMAGE)]
    assert tokenizer.encode(ours)[0] == official("<image>".join([*parts, ""]), add_special_tokens=False).input_ids


@pytest.mark.parametrize(("legacy", "kind"), [(True, "metaspace_always"), (False, "metaspace_first")])
def test_llama_tokenizer_of_transformers(legacy, kind):
    """transformers 5 builds LLaMA's pipeline anew from the vocabulary; "legacy" chooses between two that we read from
    files.
    """
    tokenizer = build(kind)
    model = tokenizer.spec["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    official = LlamaTokenizerFast(vocab=model["vocab"], merges=merges, legacy=legacy)
    official.add_special_tokens({"additional_special_tokens": ["<image>", "<pad>"]})
    text = "USER: <image>\nwhat is this? ASSISTANT: it is 12 🐱</s>USER: cat"
    ids, _ = tokenizer.encode(["USER: ", IMAGE, "\nwhat is this? ASSISTANT: it is 12 🐱", EOS, "USER: cat"])
    assert ids == official(text, add_special_tokens=False).input_ids


# ------------------------------------------------------------ typed text
@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=texts)
def test_typed_text_is_never_a_control_token(tokenizer, text):
    ids, offsets = tokenizer.encode(text)
    assert not set(ids) & (set(tokenizer.controls.values()) - {tokenizer.special("unk")})
    assert max(ids, default=0) < tokenizer.vocab_size
    # and it comes back as it was, but for the space that sentencepiece does not tell from its own
    assert tokenizer.decode(ids) in (text, text.removeprefix(" "))
    # the offsets are characters, in order, and leave none out
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)
    assert set().union(*(range(start, end) for start, end in offsets)) == set(range(len(text)))


def test_private_characters_are_not_a_back_door(tokenizer):
    ids, _ = tokenizer.encode("".join(map(chr, range(0x10F000, 0x10F010))))
    assert not set(ids) & (set(tokenizer.controls.values()) - {tokenizer.special("unk")})
    assert tokenizer.encode("a\U0010f001b") == tokenizer.encode("a\ufffdb")


def test_offsets_of_a_character_split_over_tokens(trained):
    ids, offsets = trained.encode(["a ", IMAGE, "🦄b"])
    assert offsets == [(0, 1), (1, 2), (2, 3), (3, 4), (3, 4), (3, 4), (3, 4), (4, 5)]
    assert ids[3:7] == [3 + byte for byte in "🦄".encode()]


def test_half_a_surrogate_pair(trained):
    with pytest.raises(UserError, match="surrogate"):
        trained.encode("\ud83d")


# ------------------------------------------------------------ decoding
@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=texts)
def test_a_stream_shows_whole_characters_only(tokenizer, text):
    ids, _ = tokenizer.encode(text)
    pieces = list(tokenizer.stream(ids))
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all(pieces) and ("\ufffd" in text or "\ufffd" not in "".join(pieces))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_stream_of_any_ids_joins_to_decode(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 50), max_size=40))
    assert "".join(tokenizer.stream(iter(ids))) == tokenizer.decode(ids)


def test_an_emoji_waits_for_its_last_byte(trained):
    decoder = StreamDecoder(trained)
    ids, _ = trained.encode("a 🦄.")
    assert [decoder.add(i) for i in ids] == ["a", " ", "", "", "", "🦄", "."]
    assert decoder.end() == ""


def test_what_never_becomes_a_character_is_shown_at_the_end(trained):
    ids, _ = trained.encode("a\n🦄")
    assert list(trained.stream(ids[:-1])) == ["a", "\n", "\ufffd"]


def test_each_id_is_looked_at_once(trained, monkeypatch):
    ids = trained.encode("a cat 🦄. " * 50)[0]
    seen = []
    look = Tokenizer.token_bytes
    monkeypatch.setattr(Tokenizer, "token_bytes", lambda self, token_id: seen.append(token_id) or look(self, token_id))
    assert "".join(trained.stream(ids)) == "a cat 🦄. " * 50
    assert seen == ids


# ------------------------------------------------------------ training
def test_a_trained_tokenizer_is_laid_out_like_llamas(trained):
    assert (
        [trained.special(name) for name in ("<unk>", "<s>", "</s>")]
        == [0, 1, 2]
        == [trained.special("unk"), trained.bos_id, trained.eos_id]
    )
    assert [trained.spec["model"]["vocab"][piece] for piece in BYTES] == list(range(3, 259))
    assert (trained.image_id, trained.pad_id) == (trained.vocab_size - 2, trained.vocab_size - 1)
    assert trained.vocab_size <= 420


def test_words_do_not_stick_to_punctuation(trained):
    assert trained.encode("a cat.")[0][:-1] == trained.encode("a cat,")[0][:-1] == trained.encode("a cat")[0]
    pieces = [trained.token_bytes(i).decode() for i in trained.encode("a cat\n\ncat: 12")[0]]
    assert "|".join(pieces) in (" a| cat|\n|\n|cat|:| |1|2", " a| cat|\n|\n|c|at|:| |1|2")


def test_training_is_repeatable():
    first, second = (Tokenizer.train([WORDS] * 4, 400) for _ in range(2))
    assert first.spec == second.spec


def test_transformers_loads_what_we_train(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    official = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in ("a cat, the mat.", "naïve 🦄\n12", " USER: yes"):
        assert official(text).input_ids == [trained.bos_id, *trained.encode(text)[0]]
    assert Tokenizer.from_file(tmp_path).spec == trained.spec


# ------------------------------------------------------------ files
def test_the_names_come_from_tokenizer_config(trained, tmp_path):
    extended = trained.extended("<|im_start|>", "<|im_end|>", "<image>")
    assert extended.vocab_size == trained.vocab_size + 2 and extended.image_id == trained.image_id
    extended.save(tmp_path / "tokenizer.json")
    config = {
        "eos_token": {"content": "<|im_end|>"},
        "bos_token": "<|im_start|>",
        "pad_token": None,
        "add_bos_token": True,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    read = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert (read.bos_id, read.eos_id, read.pad_id) == (trained.vocab_size, trained.vocab_size + 1, trained.pad_id)
    assert not read.adds_bos


def test_added_words_stay_words(trained):
    """An added token that is not special is text: its id is the official one, and decoding does not skip it."""
    word = {"id": trained.vocab_size, "content": "mat🐱", "single_word": False, "lstrip": False, "rstrip": False}
    spec = {
        **trained.spec,
        "added_tokens": [*trained.spec["added_tokens"], {**word, "normalized": False, "special": False}],
    }
    tokenizer = Tokenizer(spec)
    assert tokenizer.encode("a mat🐱.")[0][-2] == trained.vocab_size
    assert tokenizer.decode(tokenizer.encode("a mat🐱.")[0]) == "a mat🐱."


def test_a_missing_control_token_is_named(trained):
    spec = {**trained.spec, "added_tokens": trained.spec["added_tokens"][:3]}
    with pytest.raises(UserError, match="<image>"):
        Tokenizer(spec).special("image")
    assert Tokenizer(spec).pad_id == 0  # as the original LLaVA pads: with <unk>
    with pytest.raises(UserError, match="<other>"):
        trained.encode([Control("<other>")])


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", '{"model": 3}', '{"version": "1.0", "added_tokens": [{}], "model": null}']
)
def test_a_broken_file_is_one_sentence(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json") as error:
        Tokenizer.from_file(tmp_path)
    assert "\n" not in str(error.value)


def test_a_truncated_file(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    whole = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(UserError, match="absent"):
        Tokenizer.from_file(tmp_path / "absent.json")


# ------------------------------------------------------------ files of strangers
def sequence(within: str, *parts: dict) -> dict:
    return {"type": "Sequence", within: list(parts)}


def replacing(old: dict, new: str) -> dict:
    return {"type": "Replace", "pattern": old, "content": new}


def splitting(pattern: dict) -> dict:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


DOUBLE, BYTES_AGAIN = (
    replacing({"String": "a"}, "aa"),
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
)
TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
HARMFUL = {
    "doubles": ({"normalizer": sequence("normalizers", *[DOUBLE] * 19)}, "makes texts longer"),
    "doubles nothing": ({"normalizer": replacing({"String": ""}, "a")}, "makes texts longer"),
    "doubles by regex": ({"normalizer": replacing({"Regex": "\\s"}, "aa")}, "makes texts longer"),
    "any number of times": ({"normalizer": replacing({"Regex": "a*"}, "a")}, "regular expression 'a"),
    "doubles, inside": ({"normalizer": sequence("normalizers", sequence("normalizers", DOUBLE))}, "texts longer"),
    "a long prefix": ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, "makes texts longer"),
    "a thousand parts": ({"pre_tokenizer": sequence("pretokenizers", *[{"type": "Digits"}] * 1000)}, "at most 20"),
    "bytes of bytes": ({"pre_tokenizer": sequence("pretokenizers", *[BYTES_AGAIN] * 9)}, "more than once"),
    "other normalizer": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "'Precompiled'"),
    "bytes as normalizer": ({"normalizer": {"type": "ByteLevel"}}, "'ByteLevel' of its normalizers"),
    "other splitting": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "'FixedLength'"),
    "slow regex": ({"pre_tokenizer": splitting({"Regex": "(a+)+$"})}, r"expression '\(a\+\)\+\$'"),
    "slow regex, flat": ({"pre_tokenizer": splitting({"Regex": "a*a*a*a*a*a*b"})}, "regular expression"),
    "regex of a digit": ({"pre_tokenizer": splitting({"Regex": "\\p{N}{1,999999}"})}, "regular expression"),
    "undefined in single": ({"post_processor": {**TEMPLATE, "single": [{"SpecialToken": {"id": "<zz>"}}]}}, "<zz>"),
    "undefined, inside": (
        {"post_processor": sequence("processors", {**TEMPLATE, "single": [{"SpecialToken": {"id": "<zz>"}}]})},
        "adds '<zz>'",
    ),
    "unknown token": ({"model": {"unk_token": "<zz>"}}, "unk_token '<zz>'"),
    "prefix of pieces": ({"model": {"continuing_subword_prefix": "é####"}}, "continuing_subword_prefix"),
    "dropout": ({"model": {"dropout": 0.5}}, "dropout '0.5'"),
    "other model": ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "'Unigram'"),
    "no vocabulary": ({"model": {"vocab": None}}, "cannot be used"),
    "an id below 0": ({"added_tokens": [{"id": -1, "content": "<s>"}]}, "cannot have the id -1"),
    "a huge id": ({"added_tokens": [{"id": 2**40, "content": "<zz>"}]}, "cannot have the id"),
    "two ids": ({"added_tokens": [{"id": 7, "content": "a"}]}, "'a' cannot have the id 7"),
    "too many controls": (
        {"added_tokens": [{"id": 10**6 + i, "content": f"<{i}>", "special": True} for i in range(5000)]},
        "5000 control tokens",
    ),
    "lists for objects": ({"normalizer": [], "pre_tokenizer": []}, "cannot be used"),
    "numbers for objects": ({"added_tokens": 3}, "cannot be used"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_what_the_library_would_choke_on_never_reaches_it(trained, tmp_path, capfd, name):
    """It panics, which it prints itself, or needs years, or all memory."""
    change, said = HARMFUL[name]
    change = {key: {**trained.spec[key], **value} if key == "model" else value for key, value in change.items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**trained.spec, **change}))
    with pytest.raises(UserError, match=said) as error:
        Tokenizer.from_file(tmp_path)
    assert "tokenizer.json" in str(error.value) and capfd.readouterr() == ("", "")


def test_padding_truncation_and_decoder_are_not_the_librarys(trained):
    """Padding to a billion ids, truncation to none, and a decoder that it does not know: none of them is followed."""
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    truncation = {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5}
    spec = {**trained.spec, "padding": padding, "truncation": truncation, "decoder": {"type": "No such"}}
    assert Tokenizer(spec).encode("a cat") == trained.encode("a cat")


def test_many_added_tokens_take_no_time(trained):
    added = [{"id": 10**6 + i, "content": f"word{i}", "special": False, "normalized": False} for i in range(20_000)]
    began = time.process_time()
    tokenizer = Tokenizer({**trained.spec, "added_tokens": trained.spec["added_tokens"] + added})
    assert time.process_time() - began < 10
    assert tokenizer.encode("a word19999.")[0][-2] == 10**6 + 19_999 == tokenizer.vocab_size - 1


def test_a_text_that_is_too_long(trained):
    ids, _ = trained.encode("a cat. " * 1000)
    assert len(ids) == 3001
    with pytest.raises(UserError, match="has 1,000,001 characters, but at most 1,000,000"):
        trained.encode("a" * 1_000_001)


def test_a_file_that_is_too_large(trained, tmp_path):
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UserError, match="too large for its kind"):
        Tokenizer.from_file(tmp_path)


WHERE = {  # Llama 3's and CLIP's, SmolLM2's, and Gemma's way to split
    "Llama 3": sequence("pretokenizers", splitting({"Regex": REGEXES[3]}), {**BYTES_AGAIN, "use_regex": False}),
    "CLIP": sequence("pretokenizers", {**splitting({"Regex": REGEXES[5]}), "invert": True}, BYTES_AGAIN),
    "SmolLM2": sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, BYTES_AGAIN),
    "Gemma": splitting({"String": " "}),
}


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize("normalizer", [None, "CLIP"])
def test_the_ways_of_known_models_are_followed(name, normalizer):
    spec = build("byte_level").spec
    if normalizer:
        spaces = replacing({"Regex": "\\s+"}, " ")
        spec = {**spec, "normalizer": sequence("normalizers", {"type": "NFC"}, spaces, {"type": "Lowercase"})}
    spec = {**spec, "pre_tokenizer": WHERE[name]}
    official = tokenizers.Tokenizer.from_str(json.dumps({**spec, "post_processor": None}))
    for text in ("The CAT sat 123 times\n\n  on it's mat!", "a" * 5000, " " * 5000 + "x", "é" * 1000, "1,2;" * 999):
        assert Tokenizer(spec).encode(text)[0] == official.encode(text).ids


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (None, False),
        (BYTES_AGAIN, False),
        ({**TEMPLATE, "single": []}, False),
        ({**TEMPLATE, "single": [{"Sequence": {"id": "A"}}]}, False),
        ({"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}, True),
        (sequence("processors", BYTES_AGAIN, {"type": "BertProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}), True),
    ],
    ids=str,
)
def test_whether_a_text_begins_with_the_first_token(trained, processor, expected):
    assert Tokenizer({**trained.spec, "post_processor": processor}).adds_bos == expected


def test_a_tokenizer_json_at_which_the_library_panics(tmp_path):
    """Its post-processor names a token that it does not list."""
    spec = Tokenizer.train(["a cat"] * 3, 300).spec
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**spec, "post_processor": {**spec["post_processor"], "special_tokens": {}}})
    )
    with pytest.raises(UserError, match="cannot be used"):
        Tokenizer.from_file(tmp_path)
