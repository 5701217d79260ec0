"""Which records can be learnt from: what is left out before step 0, and how many will be cut.

A record is cut at the model's context, never within its picture's tokens: they come before the first answer, so a record that is cut there holds no
answer, and is left out.
"""

from tqdm import tqdm

from minillava.conversation import encode, render
from minillava.data.dataset import JsonSamples
from minillava.errors import UserError
from minillava.processor import Processor
from minillava.training.batches import supervised, truncated


def leave_out_unusable(samples: JsonSamples, processor: Processor, context: int, needs_picture: bool) -> None:
    """Take out the records that cannot be learnt from, and say how many there are, and how many will be cut at the context, before step 0.

    A text has at most as many tokens as bytes, so only long ones are tokenized here.
    """
    overhead = len(render(processor.template, [("user", ""), ("assistant", "")])) + 1
    image_tokens = most_image_tokens(processor)
    text_only, answerless, cut = set(), set(), 0
    for index in tqdm(range(len(samples)), desc="checking the records", leave=False, disable=None):
        if needs_picture and not samples.has_picture[index]:
            text_only.add(index)
            continue
        most = samples.num_bytes[index] + overhead * len(samples.records[index]["conversations"]) // 2
        if most + image_tokens * samples.has_picture[index] <= context:
            continue
        sample = samples[index]
        try:
            whole = encode(processor.tokenizer, processor.template, sample.turns, processor.count_image_tokens(sample.picture))
        except UserError:  # a picture that cannot be read is told when it is used
            continue
        if not supervised(truncated(whole, context)):
            answerless.add(index)
        else:
            cut += len(whole.input_ids) > context
    for indices, why in (
        (text_only, "have no picture, and stage 1 learns from pictures"),
        (answerless, f"hold no answer within the model's context of {context} tokens"),
    ):
        if indices:
            print(f"{len(indices)} of {len(samples)} records are left out: they {why}")
    if cut:
        print(f"{cut} of {len(samples)} records are longer than the model's context and are cut at {context} tokens")
    samples.leave_out(text_only | answerless)


def most_image_tokens(processor: Processor) -> int:
    """At most how many tokens a picture takes; in LLaVA-NeXT one that fills the largest of the allowed sizes."""
    if not processor.image_grid_pinpoints:
        return processor.count_image_tokens("any picture")
    side = processor.image_size // processor.patch_size
    shapes = [(height // processor.image_size * side, width // processor.image_size * side) for height, width in processor.image_grid_pinpoints]
    return side**2 + max(height * (width + 1) for height, width in shapes)
