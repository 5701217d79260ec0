"""Answering many questions greedily, in batches of prompts of about the same length."""

from tqdm import tqdm

from minillava.generation import collate_prompts, generate_batch
from minillava.processor import Processor


def answer_all(
    model, processor: Processor, questions: list[tuple[str, object]], batch_size: int = 64, max_new_tokens: int = 64, title: str = ""
) -> list[str]:
    """The answer to each (question, picture or None), in the questions' order. Pictures are paths, URLs or PIL images.

    `title` labels the progress bar. Raises UserError as `minillava.generate` does.
    """
    order = sorted(range(len(questions)), key=lambda i: len(questions[i][0]))
    answers = [""] * len(questions)
    for first in tqdm(range(0, len(order), batch_size), desc=title, leave=False, disable=None):
        rows = order[first : first + batch_size]
        batch = collate_prompts([processor(*questions[i]) for i in rows])
        ids = generate_batch(model, **batch, max_new_tokens=max_new_tokens)
        for i, answer in zip(rows, ids, strict=True):
            answers[i] = processor.tokenizer.decode(answer).strip()
    return answers
