"""Known mistakes in lessons/exercises/e03_contrastive.py."""

import torch
import torch.nn.functional as F

from lessons.mistakes.base import mistake


def scores_variant(
    normalize=lambda x: F.normalize(x, dim=-1), pool=lambda x: x.logsumexp(1), scale_first=True, use_bias=True
):
    def phrase_scores(patches, texts, scale, bias):
        cosines = normalize(patches) @ normalize(texts).T
        scores = pool(scale * cosines) if scale_first else scale * pool(cosines)
        return scores + bias if use_bias else scores

    return phrase_scores


for sentence, options in {
    "the vectors are not divided by their lengths: a cosine does not know how long they are": {
        "normalize": lambda x: x
    },
    "you normalise over the wrong axis: each vector (the last axis) gets the length 1": {
        "normalize": lambda x: F.normalize(x, dim=0)
    },
    "you take the mean over the patches; a small thing on one patch would be outvoted by all the others": {
        "pool": lambda x: x.mean(1)
    },
    "you take the plain maximum; the soft one, log of the sum of exponentials, lets all patches learn": {
        "pool": lambda x: x.amax(1)
    },
    "you scale after the soft maximum; scale the cosines first, or the maximum is hardly one": {"scale_first": False},
    "the bias is missing: most phrases are false of most pictures, and it says so from the start": {"use_bias": False},
    "you sum the exponentials without the log: that overflows as soon as the scale has grown": {
        "pool": lambda x: x.exp().sum(1)
    },
}.items():
    mistake("contrastive", "phrase_scores", sentence)(scores_variant(**options))


@mistake(
    "contrastive",
    "contrastive_loss",
    "the signs are the wrong way round: your loss is small where true phrases have low scores",
)
def loss_wrong_sign(scores, true):
    return F.softplus(torch.where(true, scores, -scores)).sum(1).mean()


@mistake(
    "contrastive",
    "contrastive_loss",
    "you take the mean over the phrases; they are summed for each picture, and only the pictures averaged",
)
def loss_all_mean(scores, true):
    return F.softplus(torch.where(true, -scores, scores)).mean()


@mistake("contrastive", "contrastive_loss", "you sum over everything; the pictures of the batch are averaged")
def loss_all_sum(scores, true):
    return F.softplus(torch.where(true, -scores, scores)).sum()


@mistake(
    "contrastive",
    "contrastive_loss",
    "only the true phrases count in your loss: a model that says yes to everything would have the loss 0",
)
def loss_true_only(scores, true):
    return (F.softplus(-scores) * true).sum(1).mean()


@mistake(
    "contrastive",
    "contrastive_loss",
    "that is a softmax over the phrases, CLIP's loss; here each phrase is a yes or no of its own",
)
def loss_softmax(scores, true):
    return -(scores.log_softmax(1) * true).sum(1).mean()


@mistake(
    "contrastive",
    "contrastive_loss",
    "log of a sigmoid that became 0 is infinite; softplus says the same and cannot overflow",
)
def loss_overflow(scores, true):
    return -torch.sigmoid(torch.where(true, scores, -scores)).log().sum(1).mean()
