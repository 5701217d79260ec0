"""What turns an official language model into LLaVA's: embeddings for `<image>` and `<pad>`, as in llava-hf's files
(32,000 rows become 32,064).
"""

from dataclasses import replace

import torch
from torch import nn

from minillava.language_model import LanguageModel

MULTIPLE = 64  # rows come in this many, which the hardware multiplies faster


def with_rows(language_model: LanguageModel, vocab_size: int) -> LanguageModel:
    """The same language model, with rows for `vocab_size` ids or a few more; each new row is the mean of the old ones.

    A row for `<image>` is never read here, but transformers looks it up before it puts the picture in its place.
    """
    missing = vocab_size - language_model.config.vocab_size
    if missing <= 0:
        return language_model
    rows = -(-vocab_size // MULTIPLE) * MULTIPLE
    for module in filter(None, (language_model.embed_tokens, language_model.lm_head)):
        old = module.weight.data
        module.weight = nn.Parameter(torch.cat([old, old.mean(0, keepdim=True).expand(rows - len(old), -1)]))
    language_model.config = replace(language_model.config, vocab_size=rows)
    return language_model
