"""The tiny world's benchmark: scores worked by hand, and answers that do not depend on who stands beside them in a
batch.
"""

import pytest
import torch
from PIL import Image

from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.generation import answer, answer_all, collate_prompts
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.model import Llava
from minillava.training.scoring import F1_KINDS, Case, cases, score, table


def test_the_truth_scores_one_and_nonsense_nothing():
    asked = cases("val", 40)
    assert set(score(asked, [case.question.answer for case in asked]).values()) == {1.0}
    assert max(score(asked, ["xyzzy"] * len(asked)).values()) == 0.0


def test_half_of_the_answers_right_is_half():
    asked = [case for case in cases("val", 60) if case.question.kind == "existence"][:20]
    answers = [case.question.short for case in asked[:10]] + [
        {"yes": "no", "no": "yes"}[case.question.short] for case in asked[10:]
    ]
    assert score(asked, answers) == {"existence": 0.5}


def test_f1_of_named_things():
    case = next(
        case
        for case in cases("val", 60)
        if case.question.kind == "list" and len({t.name for t in case.scene.things}) == 2
    )
    one = case.scene.things[0].name
    absent = next(name for name in ("cat", "bus", "drum") if name not in {t.name for t in case.scene.things})
    assert score([case], [f"There is a {one}."])["list"] == pytest.approx(2 * 1 / (2 + 1))
    assert score([case], [f"There is a {one} and a {absent}."])["list"] == pytest.approx(2 * 1 / (2 + 2))


def test_splits_ask_about_different_scenes():
    val, pairs = cases("val", 5), cases("pairs", 5)
    assert isinstance(val[0], Case) and {case.scene for case in val}.isdisjoint({case.scene for case in pairs})
    assert all(len(case.scene.things) <= 4 for case in val + pairs)
    assert "list" in F1_KINDS and table({"sees": {"list": 0.5}}, val).splitlines()[3].endswith("| 50.0 |")


@pytest.fixture(scope="module")
def small():
    tokenizer = Tokenizer.train(["USER: ASSISTANT: Is there a cat? Where is the dog? Yes, there is a cat."] * 5, 360)
    tower = VisionConfig(
        hidden_size=24, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, image_size=28, patch_size=7
    )
    text = TextConfig(
        tokenizer.vocab_size, 40, 56, 2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256
    )
    torch.manual_seed(2)
    model = Llava(LlavaConfig(tower, text, tokenizer.image_id)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # so that answers differ
    return model, Processor.for_model(tokenizer, model.config)


def test_a_batch_answers_as_one_by_one(small):
    model, processor = small
    colors = ("red", "white", "blue", "black", "green")
    asked = [("Is there a cat?" * (1 + i % 3), Image.new("RGB", (28, 28), color)) for i, color in enumerate(colors)]
    together = answer_all(model, processor, asked, batch_size=4, max_new_tokens=9)
    assert together == [answer(model, processor, picture, question, max_new_tokens=9) for question, picture in asked]
    assert len(set(together)) > 1


def test_padding_is_on_the_left(small):
    _, processor = small
    batch = collate_prompts([processor("Hi"), processor("Where is the dog?")])
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].all() and "pixel_values" not in batch
