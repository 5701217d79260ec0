"""Known mistakes in lessons/exercises/e07_merge.py."""

import torch

from lessons.mistakes.base import mistake


def merge_variant_of_llava(check=True, safe=True, place=None, cast=True):
    def merge(self, input_ids, image_features):
        is_image = input_ids == self.config.image_token_id
        if check and int(is_image.sum()) != len(image_features):
            raise ValueError("the placeholders are not as many as the rows")
        embeds = self.embed_text(input_ids.masked_fill(is_image, 0) if safe else input_ids)
        features = image_features.to(embeds.dtype) if cast else image_features
        return place(embeds, is_image, features) if place else embeds.masked_scatter(is_image[..., None], features)

    return merge


def same_row(embeds, is_image, features):
    first = features[:1] if len(features) else features.new_zeros(1, embeds.shape[-1])
    return torch.where(is_image[..., None], first, embeds)


def added(embeds, is_image, features):
    return embeds + torch.zeros_like(embeds).masked_scatter(is_image[..., None], features)


def each_row_anew(embeds, is_image, features):
    out = embeds.clone()
    for b in range(len(out)):
        count = int(is_image[b].sum())
        out[b, is_image[b]] = features[:count]
    return out


def in_front(embeds, is_image, features):
    rows = embeds.clone()
    for b, before in enumerate(is_image.sum(1).cumsum(0) - is_image.sum(1)):
        own = features[before : before + is_image[b].sum()]
        rows[b] = torch.cat([own, embeds[b][~is_image[b]]])
    return rows


for sentence, options in {
    "every placeholder gets the first row; the rows go into the places one after the other": {"place": same_row},
    "you add the picture's rows to the placeholders' embeddings; they replace them": {"place": added},
    "each row of the batch begins again with the first picture; the rows of image_features go on from one to the next": {
        "place": each_row_anew
    },
    "the picture's rows are put in front of the text; they belong where the placeholders are": {"place": in_front},
    "the rows come in reverse order": {"place": lambda e, m, f: e.masked_scatter(m[..., None], f.flip(0))},
    "the placeholder's id is embedded, but it may be larger than the table: put another id in its place first": {
        "safe": False
    },
    "the rows keep their own dtype: bring them to that of the text's embeddings": {"cast": False},
    "you do not count: when placeholders and rows differ in number, raise ValueError": {"check": False},
}.items():
    mistake("merge", "merge", sentence)(merge_variant_of_llava(**options))


@mistake("merge", "merge", "you write into input_ids, which belong to the caller; masked_fill gives a copy")
def merge_in_place(self, input_ids, image_features):
    is_image = input_ids == self.config.image_token_id
    if int(is_image.sum()) != len(image_features):
        raise ValueError("the placeholders are not as many as the rows")
    input_ids[is_image] = 0
    embeds = self.embed_text(input_ids)
    return embeds.masked_scatter(is_image[..., None], image_features.to(embeds.dtype))
