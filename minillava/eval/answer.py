"""Answering many questions: prompts of like length side by side, padded on the left, greedily."""

import torch
from tqdm import tqdm

from minillava.generate import generate_batch
from minillava.processor import Processor


def answer_all(
    model, processor: Processor, questions: list[tuple[str, object]], batch_size: int = 64, max_new_tokens: int = 64, title: str = ""
) -> list[str]:
    """The answer to each (question, picture or None), in order. Pictures are paths or PIL images."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i][0]))
    answers = [""] * len(questions)
    for first in tqdm(range(0, len(order), batch_size), desc=title, leave=False, disable=None):
        rows = order[first : first + batch_size]
        batch = left_padded([processor(*questions[i]) for i in rows])
        ids = generate_batch(model, **batch, max_new_tokens=max_new_tokens)
        for i, answer in zip(rows, ids, strict=True):
            answers[i] = processor.tokenizer.decode(answer).strip()
    return answers


def left_padded(inputs: list[dict]) -> dict[str, torch.Tensor]:
    """Single prompts as one batch: input_ids, attention_mask (B, T), and their pictures. The padding is hidden, so any id serves."""
    T = max(one["input_ids"].shape[1] for one in inputs)
    ids, mask = torch.zeros(2, len(inputs), T, dtype=torch.int64)
    for row, one in enumerate(inputs):
        length = one["input_ids"].shape[1]
        ids[row, T - length :], mask[row, T - length :] = one["input_ids"][0], 1
    batch = {"input_ids": ids, "attention_mask": mask}
    pictures = {name: [one[name] for one in inputs if name in one] for name in ("pixel_values", "image_sizes")}
    return batch | {name: torch.cat(tensors) for name, tensors in pictures.items() if tensors}
