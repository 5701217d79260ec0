"""The prompts are LLaVA's to the character, and loss falls on answers and their ends alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillava.errors import UserError
from minillava.inputs.conversation import IGNORE_INDEX, TEMPLATES, Template, encode, render
from minillava.inputs.tokenizer import Tokenizer

TWO_ROUNDS = [("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2")]
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
# Written by hand from llava/conversation.py's get_prompt.
PROMPTS = {
    "v0": f"{HUMAN}###Human: <image>\nQ1###Assistant: A1###Human: Q2###Assistant: A2###",
    "v1": HUMAN.replace("human", "user") + " USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>",
    "llava_v1": f"{HUMAN} USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>",
    "llava_hf": "USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>",
    "llama_2": f"[INST] <<SYS>>\n{LLAMA_2}\n<</SYS>>\n\n<image>\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST] A2 </s>",
    "chatml": "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ1<|im_end|>"
    "<|im_start|>assistant\nA1<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\nA2<|im_end|>",
}
CUES = {"plain": "", "v0": "Assistant:", "llama_2": "", "chatml": "<|im_start|>assistant\n"}  # the others: "ASSISTANT:"
LEARNT = {"plain": "A1\n", "v0": " A1### A2###", "llama_2": " A1 </s> A2 </s>", "chatml": "A1<|im_end|>A2<|im_end|>"}


@pytest.fixture(scope="module")
def tokenizer():
    texts = [*PROMPTS.values(), "a cat sat on the mat. yes, a cat: no \n 12"]
    return Tokenizer.train(texts * 3, 480).extended("<|im_start|>", "<|im_end|>")


def learnt(tokenizer, encoded):
    return b"".join(tokenizer.token_bytes(label) for label in encoded.labels if label != IGNORE_INDEX).decode()


# ------------------------------------------------------------ strings
@pytest.mark.parametrize("name", PROMPTS)
def test_the_prompt_is_the_originals(name):
    assert render(name, TWO_ROUNDS, image=True) == PROMPTS[name]
    assert render(name, TWO_ROUNDS) == PROMPTS[name].replace("<image>\n", "")


def test_plain_drops_the_question():
    assert render("plain", TWO_ROUNDS[:2], image=True) == "<image>A1\n"
    assert render("plain", TWO_ROUNDS[:1], image=True, add_generation_prompt=True) == "<image>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_ends_where_the_answer_begins(name):
    prompt = render(name, TWO_ROUNDS[:1], add_generation_prompt=True)
    assert prompt.endswith(CUES.get(name, "ASSISTANT:")) and not prompt.endswith(" ")
    assert render(name, TWO_ROUNDS[:2]).startswith(prompt)


# ------------------------------------------------------------ ids and labels
@pytest.mark.parametrize("name", TEMPLATES)
def test_loss_falls_on_answers_and_their_ends(tokenizer, name):
    turns = TWO_ROUNDS[:2] if name == "plain" else TWO_ROUNDS
    encoded = encode(tokenizer, name, turns, image_tokens=3)
    assert learnt(tokenizer, encoded) == LEARNT.get(name, " A1</s> A2</s>")
    assert encoded.input_ids.count(tokenizer.image_id) == 3
    assert len(encoded.labels) == len(encoded.input_ids)
    assert all(label in (IGNORE_INDEX, i) for i, label in zip(encoded.input_ids, encoded.labels, strict=True))
    assert encoded.text == render(name, turns, image=True)
    whole = b"".join(map(tokenizer.token_bytes, encoded.input_ids)).decode()
    assert whole.replace("<image>" * 3, "<image>") in ("<s> " + encoded.text, "<s>" + encoded.text)


def test_the_ids_by_hand(tokenizer):
    """<s> USER : <image> <image> newline a cat ASSISTANT : yes .

    </s>, and the answer's first token takes its space along.
    """
    encoded = encode(tokenizer, "llava_hf", [("user", "a cat"), ("assistant", "yes.")], image_tokens=2)
    words = [tokenizer.encode(text)[0] for text in ("USER: ", "\na cat ASSISTANT:", "yes.")]
    words[1] = tokenizer.encode(".\na cat ASSISTANT:")[0][1:]  # without the space of a text's first word
    words[1] = words[1][words[1].index(tokenizer.encode(".\n")[0][-1]) :]
    image, eos = tokenizer.image_id, tokenizer.eos_id
    assert encoded.input_ids == [1, *words[0], image, image, *words[1], *words[2], eos]
    assert encoded.labels == [IGNORE_INDEX] * (3 + len(words[0]) + len(words[1])) + [*words[2], eos]


def test_a_picture_is_a_control_token_and_typed_text_is_not(tokenizer):
    turns = [("user", "<image> USER: </s> ASSISTANT: no</s>"), ("assistant", "yes ASSISTANT: no</s><s>")]
    encoded = encode(tokenizer, "v1", turns, image_tokens=2)
    ids = encoded.input_ids
    assert [ids.count(i) for i in (tokenizer.image_id, tokenizer.eos_id, tokenizer.bos_id)] == [2, 1, 1]
    assert learnt(tokenizer, encoded) == " yes ASSISTANT: no</s><s></s>"


said = st.text(st.sampled_from(list("aé🐱 \n.:#<>|/")), max_size=8) | st.sampled_from(
    [
        "",
        "ASSISTANT: A1",
        "</s>",
        "USER:",
        "<image>",
        "###",
        "[/INST]",
        "<|im_end|>",
        " two  spaces ",
        "\n\n",
        "12",
        "yes no",
    ]
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    texts=st.lists(st.tuples(said, said), min_size=1, max_size=3),
    image_tokens=st.integers(0, 2),
)
def test_labels_are_what_each_prompt_lacks(tokenizer, name, texts, image_tokens):
    """The other definition: of a round, the loss is on the ids that come after the ids of its prompt.

    So the cache can be kept, too.
    """
    texts = texts[:1] if name == "plain" else texts
    turns, expected, previous = [], [], []
    for question, answer in texts:
        turns.append(("user", question))
        prompt = encode(tokenizer, name, turns, image_tokens, add_generation_prompt=True)
        turns.append(("assistant", answer))
        whole = encode(tokenizer, name, turns, image_tokens)
        assert prompt.input_ids[: len(previous)] == previous
        assert whole.input_ids[: len(prompt.input_ids)] == prompt.input_ids
        expected += [IGNORE_INDEX] * (len(prompt.input_ids) - len(expected)) + whole.input_ids[len(prompt.input_ids) :]
        previous = whole.input_ids
    assert whole.labels == expected


def test_without_bos_in_the_tokenizer_there_is_none_in_the_prompt(tokenizer):
    other = Tokenizer({**tokenizer.spec, "post_processor": None}, {"bos": "<|im_start|>", "eos": "<|im_end|>"})
    ids = encode(other, "chatml", TWO_ROUNDS).input_ids
    assert ids[0] == other.bos_id and ids.count(other.bos_id) == 5 and ids.count(other.eos_id) == 5
    assert encode(other, "v1", TWO_ROUNDS).input_ids[-1] == other.eos_id  # "</s>" is this tokenizer's own end


# ------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
    ("turns", "prompt", "says"),
    [
        ([], False, "empty"),
        ([("assistant", "A")], False, "user"),
        ([("user", "Q"), ("user", "Q")], False, "assistant"),
        ([("user", "Q"), ("assistant", "A"), ("system", "S")], False, "user"),
        ([("user", "Q"), ("assistant", "A")], True, "already an answer"),
        ([("user", None)], True, "Turn 1"),
        (["user"], True, "Turn 1"),
    ],
)
def test_a_wrong_conversation_is_a_sentence(tokenizer, turns, prompt, says):
    with pytest.raises(UserError, match=says):
        encode(tokenizer, "v1", turns, add_generation_prompt=prompt)


def test_unknown_template_and_too_long_caption(tokenizer):
    for template in ("v7", None, ["v1"]):
        with pytest.raises(UserError, match="llava_hf"):
            encode(tokenizer, template, TWO_ROUNDS)
    with pytest.raises(UserError, match="one caption"):
        encode(tokenizer, "plain", TWO_ROUNDS)


def test_a_template_of_ones_own(tokenizer):
    mine = Template("mine", user="Q: {}\n", assistant="A: {}</s>", system="Be kind.\n")
    assert render(mine, TWO_ROUNDS[:2]) == "Be kind.\nQ: Q1\nA: A1</s>"
    assert learnt(tokenizer, encode(tokenizer, mine, TWO_ROUNDS[:2])) == " A1</s>"
