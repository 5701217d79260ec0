"""Known mistakes: wrong versions that students write, each with the sentence that the check says to it.

A mistake is one of an exercise's functions or classes, wrong; its other parts are the product's. When a student's part fails, and gives on every case
what a mistake gives, the check says that mistake's sentence.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from minillava import attention as product_attention
from minillava import generation, language_model, vision
from minillava.language_model import apply_rope


@dataclass(frozen=True)
class Mistake:
    name: str  # of the part that is wrong: "apply_rope"
    part: object
    sentence: str


MISTAKES: dict[str, list[Mistake]] = defaultdict(list)


def mistake(key: str, name: str, sentence: str):
    """A decorator that adds what follows to the known mistakes of an exercise, as its part `name`."""

    def add(part):
        MISTAKES[key].append(Mistake(name, part, sentence))
        return part

    return add


# ---------------------------------------------------------------------------------------------------------------- 01 patchify
@mistake("patchify", "patchify", "the picture is reshaped without a permute: your patches are strips of whole rows of pixels, not squares")
def strips(pixel_values, patch_size):
    B, channels, E, _ = pixel_values.shape
    return pixel_values.reshape(B, (E // patch_size) ** 2, channels * patch_size**2)


@mistake("patchify", "patchify", "your patches go down the columns of the grid; patch number 1 is to the right of patch 0, not below it")
def columns_first(pixel_values, patch_size):
    x = pixel_values.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return x.permute(0, 3, 2, 1, 4, 5).flatten(3).flatten(1, 2)


@mistake("patchify", "patchify", "the colours stand last in your patches (r, g, b of each pixel); all reds come first, then greens, then blues")
def channels_last(pixel_values, patch_size):
    x = pixel_values.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


@mistake("patchify", "patchify", "each of your patches is transposed: within a patch, too, the pixels stand row by row")
def transposed(pixel_values, patch_size):
    x = pixel_values.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return x.permute(0, 2, 3, 1, 5, 4).flatten(3).flatten(1, 2)


@mistake("patchify", "patchify", "you take every (E / p)-th pixel; a patch is a square of neighbours: split E into (E / p, p), not (p, E / p)")
def every_nth(pixel_values, patch_size):
    B, channels, E, _ = pixel_values.shape
    x = pixel_values.reshape(B, channels, patch_size, E // patch_size, patch_size, E // patch_size)
    return x.permute(0, 3, 5, 1, 2, 4).flatten(3).flatten(1, 2)


@mistake("patchify", "patchify", "your grid is two-dimensional: flatten its rows and columns into one axis, (B, P, 3 * p * p)")
def unflattened(pixel_values, patch_size):
    x = pixel_values.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3)


# ---------------------------------------------------------------------------------------------------------------- 02 attention
def attention_variant(scale=lambda D: math.sqrt(D), axis=-1, share="each", offset=None, masked="before", padding=True, blind="zeros"):
    """eager_attention, wrong in one place."""

    def eager_attention(q, k, v, *, causal, start=None):
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            repeat = (lambda x: x.repeat_interleave(groups, 1)) if share == "each" else (lambda x: x.repeat(1, groups, 1, 1))
            k, v = repeat(k), repeat(v)
        scores = q @ k.transpose(-2, -1) / scale(q.shape[-1])
        T, S = q.shape[2], k.shape[2]
        mask = product_attention.visible(T, S, causal, start if padding else None, q.device)
        if causal and offset is not None:
            mask = torch.ones(T, S, dtype=torch.bool).tril(offset(T, S))
            if start is not None:
                mask = mask & (torch.arange(S) >= start[:, None])[:, None, None]
        if mask is None:
            return scores.softmax(axis) @ v
        if masked == "before":
            weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min if blind != "nan" else -math.inf).softmax(axis)
        else:
            weights = scores.softmax(axis)
        if masked == "after" or (start is not None and blind == "zeros"):
            weights = weights.masked_fill(~mask, 0)
        return weights @ v

    return eager_attention


for sentence, options in {
    "the scores are not divided by sqrt(D): they grow with the width of the head, and softmax becomes a choice of one": {"scale": lambda D: 1.0},
    "the scores are divided by D; it is the square root of D": {"scale": lambda D: D},
    "your softmax runs over the queries; the weights of one query, over the keys (the last axis), must sum to 1": {"axis": -2},
    "your mask starts at the first key, but the queries are the LAST T of the S positions: a cached prefix is theirs to see": {
        "offset": lambda T, S: 0
    },
    "your mask is off by one: a query may see itself (the diagonal), not only what stands before it": {"offset": lambda T, S: S - T - 1},
    "your mask is off by one: a query sees the key after its own, and so the word that it should predict": {"offset": lambda T, S: S - T + 1},
    "the mask is missing: every query sees every key, what comes later too": {"offset": lambda T, S: S},
    "you mask after the softmax: what is left no longer sums to 1; put a very low score in the place of masked scores before it": {"masked": "after"},
    "query head h reads key/value head h mod K; the heads are shared in groups, (repeat_interleave, not repeat)": {"share": "blocks"},
    "you leave out `start`: padding on the left is visible to the words behind it": {"padding": False},
    "a query that may see no key gives NaN, since softmax of nothing but -inf is 0 / 0; it has to give zeros": {"blind": "nan"},
    "a query that may see no key gives a mean of the padding; it has to give zeros": {"blind": "mean"},
}.items():
    mistake("attention", "eager_attention", sentence)(attention_variant(**options))


# ---------------------------------------------------------------------------------------------------------------- 03 the tower
def vision_layer_variant(forward, eps=None):
    class VisionLayer(vision.VisionLayer):
        def __init__(self, config):
            super().__init__(config)
            if eps is not None:
                self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(config.hidden_size, eps) for _ in range(2))

    if forward:
        VisionLayer.forward = forward
    return VisionLayer


def vision_no_residual(self, x, implementation):
    x = self.self_attn(self.layer_norm1(x), implementation)
    return self.mlp(self.layer_norm2(x))


def vision_post_norm(self, x, implementation):
    x = self.layer_norm1(x + self.self_attn(x, implementation))
    return self.layer_norm2(x + self.mlp(x))


def vision_residual_of_normed(self, x, implementation):
    x = self.layer_norm1(x)
    x = x + self.self_attn(x, implementation)
    x = self.layer_norm2(x)
    return x + self.mlp(x)


def vision_parallel(self, x, implementation):
    return x + self.self_attn(self.layer_norm1(x), implementation) + self.mlp(self.layer_norm2(x))


def vision_one_norm(self, x, implementation):
    x = x + self.self_attn(self.layer_norm1(x), implementation)
    return x + self.mlp(self.layer_norm1(x))


def vision_mlp_first(self, x, implementation):
    x = x + self.mlp(self.layer_norm2(x))
    return x + self.self_attn(self.layer_norm1(x), implementation)


def vision_last_residual(self, x, implementation):
    first = x + self.self_attn(self.layer_norm1(x), implementation)
    return x + self.mlp(self.layer_norm2(first))


NO_RESIDUAL = "the residual path is missing: each part's output is added to x, and does not replace it"
POST_NORM = "you norm after adding (the first transformer's order); here the norm stands before each part, and x itself is never normed"
NORMED_RESIDUAL = "you add to the normed x; the residual path carries x as it was, only the part reads the normed one"
PARALLEL = "your MLP reads the layer's input; it has to read x after attention was added"
FIRST_RESIDUAL = "you add the MLP to the layer's input, and attention's output is lost on the residual path"

for sentence, forward in {
    NO_RESIDUAL: vision_no_residual,
    POST_NORM: vision_post_norm,
    NORMED_RESIDUAL: vision_residual_of_normed,
    PARALLEL: vision_parallel,
    "layer_norm1 is used twice; the MLP has a norm of its own, layer_norm2": vision_one_norm,
    "the MLP runs before attention; the patches look at one another first": vision_mlp_first,
    FIRST_RESIDUAL: vision_last_residual,
}.items():
    mistake("vision_layer", "VisionLayer", sentence)(vision_layer_variant(forward))
mistake("vision_layer", "VisionLayer", "your norms have eps 1e-5 built in; take it from config.layer_norm_eps")(vision_layer_variant(None, 1e-5))


def scores_variant(normalize=lambda x: F.normalize(x, dim=-1), pool=lambda x: x.logsumexp(1), scale_first=True, use_bias=True):
    def phrase_scores(patches, texts, scale, bias):
        cosines = normalize(patches) @ normalize(texts).T
        scores = pool(scale * cosines) if scale_first else scale * pool(cosines)
        return scores + bias if use_bias else scores

    return phrase_scores


for sentence, options in {
    "the vectors are not divided by their lengths: a cosine does not know how long they are": {"normalize": lambda x: x},
    "you normalise over the wrong axis: each vector (the last axis) gets the length 1": {"normalize": lambda x: F.normalize(x, dim=0)},
    "you take the mean over the patches; a small thing on one patch would be outvoted by all the others": {"pool": lambda x: x.mean(1)},
    "you take the plain maximum; the soft one, log of the sum of exponentials, lets all patches learn": {"pool": lambda x: x.amax(1)},
    "you scale after the soft maximum; scale the cosines first, or the maximum is hardly one": {"scale_first": False},
    "the bias is missing: most phrases are false of most pictures, and it says so from the start": {"use_bias": False},
    "you sum the exponentials without the log: that overflows as soon as the scale has grown": {"pool": lambda x: x.exp().sum(1)},
}.items():
    mistake("contrastive", "phrase_scores", sentence)(scores_variant(**options))


@mistake("contrastive", "contrastive_loss", "the signs are the wrong way round: your loss is small where true phrases have low scores")
def loss_wrong_sign(scores, true):
    return F.softplus(torch.where(true, scores, -scores)).sum(1).mean()


@mistake("contrastive", "contrastive_loss", "you take the mean over the phrases; they are summed for each picture, and only the pictures averaged")
def loss_all_mean(scores, true):
    return F.softplus(torch.where(true, -scores, scores)).mean()


@mistake("contrastive", "contrastive_loss", "you sum over everything; the pictures of the batch are averaged")
def loss_all_sum(scores, true):
    return F.softplus(torch.where(true, -scores, scores)).sum()


@mistake("contrastive", "contrastive_loss", "only the true phrases count in your loss: a model that says yes to everything would have the loss 0")
def loss_true_only(scores, true):
    return (F.softplus(-scores) * true).sum(1).mean()


@mistake("contrastive", "contrastive_loss", "that is a softmax over the phrases, CLIP's loss; here each phrase is a yes or no of its own")
def loss_softmax(scores, true):
    return -(scores.log_softmax(1) * true).sum(1).mean()


@mistake("contrastive", "contrastive_loss", "log of a sigmoid that became 0 is infinite; softplus says the same and cannot overflow")
def loss_overflow(scores, true):
    return -torch.sigmoid(torch.where(true, scores, -scores)).log().sum(1).mean()


# ---------------------------------------------------------------------------------------------------------------- 04 text
@mistake("bpe", "merge_pieces", "you join the leftmost pair that can be joined; the pair of the lowest rank comes first, wherever it stands")
def leftmost(pieces, ranks):
    pieces = list(pieces)
    while True:
        at = next((i for i, pair in enumerate(pairwise(pieces)) if pair in ranks), None)
        if at is None:
            return pieces
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def merge_variant(best=min, limit=None, copy=True, key=lambda rank, i: (rank, i)):
    def merge_pieces(pieces, ranks):
        pieces = list(pieces) if copy else pieces
        done = 0
        while limit is None or done < limit:
            pairs = [(*key(ranks[pair], i), i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
            if not pairs:
                break
            i = best(pairs)[-1]
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            done += 1
        return pieces

    return merge_pieces


HIGHEST = "you join the pair of the highest rank; rank 0 was learnt first and goes first"
mistake("bpe", "merge_pieces", HIGHEST)(merge_variant(best=lambda pairs: max(pairs, key=lambda pair: (pair[0], -pair[1]))))
mistake("bpe", "merge_pieces", "you stop after one join; go on until no two neighbours have a rank")(merge_variant(limit=1))
mistake("bpe", "merge_pieces", "you change the list that you were given; work on a copy of it")(merge_variant(copy=False))
mistake("bpe", "merge_pieces", "of equal pairs you join the last; it is the leftmost")(merge_variant(key=lambda rank, i: (rank, -i)))


@mistake("bpe", "merge_pieces", "you go through the ranks once; a join can make a lower rank possible, so begin anew after each")
def one_pass(pieces, ranks):
    pieces = list(pieces)
    for pair in sorted(ranks, key=ranks.get):
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == pair:
                pieces[i : i + 2] = ["".join(pair)]
            i += 1
    return pieces


@mistake("bpe", "merge_pieces", "you join every place of the pair at once and then let a piece be used twice; after a join its pieces are gone")
def used_twice(pieces, ranks):
    pieces = list(pieces)
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not found:
            return pieces
        lowest = min(found)[0]
        places = {i for rank, i in found if rank == lowest}
        behind = {i + 1 for i in places}
        pieces = [pieces[i] + pieces[i + 1] if i in places else pieces[i] for i in range(len(pieces)) if i in places or i not in behind]


def mask_variant(decide, shift=0, ignore=-100):
    def label_mask(ids, offsets, supervised_at):
        labels = [i if decide(start, end, supervised_at) else ignore for i, (start, end) in zip(ids, offsets, strict=True)]
        return labels[shift:] + [ignore] * min(shift, len(labels))

    return label_mask


def last_character(start, end, at):
    return end > start and at[end - 1]


for sentence, options in {
    "you supervise the questions and mask the answers; it is the other way round": {"decide": lambda s, e, at: e > s and not at[e - 1]},
    "every token pays in yours; the questions and the template must have the label -100": {"decide": lambda s, e, at: e > s},
    "you decide by the first character of a token; the last one counts, since a token may begin with the space before a word": {
        "decide": lambda s, e, at: e > s and at[s]
    },
    "`end` is one behind the token's last character: look at supervised_at[end - 1]": {"decide": lambda s, e, at: e > s and e < len(at) and at[e]},
    "a token without characters pays in yours: it comes from nowhere in the answer, so its label is -100": {
        "decide": lambda s, e, at: bool(at) and at[e - 1]
    },
    "you ask for all of a token's characters to be supervised; the last one alone decides": {"decide": lambda s, e, at: e > s and all(at[s:e])},
    "one supervised character anywhere in a token is enough for yours; the last one alone decides": {"decide": lambda s, e, at: any(at[s:e])},
    "your labels are shifted by one; the loss does that, and twice is once too often": {"decide": last_character, "shift": 1},
    "your masked labels are 0, which is a token; the label that cross entropy leaves out is -100": {"decide": last_character, "ignore": 0},
}.items():
    mistake("label_mask", "label_mask", sentence)(mask_variant(**options))


# ---------------------------------------------------------------------------------------------------------------- 05 positions
@mistake("rope", "apply_rope", "this is the interleaved layout: it pairs i with i + 1; these weights pair i with i + D / 2")
def interleaved(x, cos, sin):
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    half = cos.shape[-1] // 2
    return x * cos[..., :half].repeat_interleave(2, -1) + turned * sin[..., :half].repeat_interleave(2, -1)


def rope_variant(turn):
    def apply_rope(x, cos, sin):
        first, second = x.chunk(2, -1)
        return turn(x, first, second, cos, sin)

    return apply_rope


for sentence, turn in {
    "you turn the other way: the minus sign belongs to x[i + D/2] sin, in the first half": lambda x, a, b, cos, sin: (
        x * cos + torch.cat([b, -a], -1) * sin
    ),
    "the minus sign is missing: yours is no rotation, and lengths change": lambda x, a, b, cos, sin: x * cos + torch.cat([b, a], -1) * sin,
    "the halves are not exchanged: the sine must multiply the other number of the pair": lambda x, a, b, cos, sin: (
        x * cos + torch.cat([-a, b], -1) * sin
    ),
    "cos and sin have changed places": lambda x, a, b, cos, sin: x * sin + torch.cat([-b, a], -1) * cos,
    "the cosine alone only shrinks x; the other half of each pair, times the sine, has to be added": lambda x, a, b, cos, sin: x * cos,
    "every head is turned as if it were a position: cos and sin (T, D) belong to the axis of T, not of H": lambda x, a, b, cos, sin: (
        x * cos[: x.shape[1], None] + torch.cat([-b, a], -1) * sin[: x.shape[1], None]
    ),
}.items():
    mistake("rope", "apply_rope", sentence)(rope_variant(turn))


@mistake("rope", "apply_rope", "you change x itself; give back a new tensor")
def in_place(x, cos, sin):
    turned = apply_rope(x, cos, sin)
    x.copy_(turned)
    return x


def tables_variant(positions=lambda start, end: torch.arange(start, end), spread=lambda a: torch.cat([a, a], -1), late=True, double=1.0):
    def rope_tables(frequencies, start, end, dtype, device):
        places = positions(start, end).float()
        if not late:
            places, frequencies = places.to(dtype), frequencies.to(dtype)
        angles = spread(places[:, None] * frequencies * double)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    return rope_tables


for sentence, options in {
    "your positions always begin at 0: with a cache, the next token would stand at the first place again": {
        "positions": lambda start, end: torch.arange(end - start)
    },
    "your positions begin at 1: position 0 must not be turned at all": {"positions": lambda start, end: torch.arange(start, end) + 1},
    "each angle stands twice in a row in your tables (a a b b); here the D / 2 angles stand in a row, and then again (a b a b)": {
        "spread": lambda a: a.repeat_interleave(2, -1)
    },
    "your tables are only D / 2 wide; both numbers of a pair need the angle, so the row stands there twice": {"spread": lambda a: a},
    "you compute the angles in the low precision: bfloat16 knows no position 297, so neighbours get the same angle; cast last": {"late": False},
    "the tables hold one row too many: `end` itself is not in them": {"positions": lambda start, end: torch.arange(start, end + 1)},
}.items():
    mistake("rope", "rope_tables", sentence)(tables_variant(**options))


# ---------------------------------------------------------------------------------------------------------------- 06 the decoder
def norm_variant(compute, dtype=torch.float32):
    def rms_norm(x, weight, eps):
        return compute(x, x.float(), weight, eps)

    return rms_norm


for sentence, compute in {
    "your epsilon is outside of the root: it belongs under it, mean(x^2) + eps": lambda x, f, w, eps: (
        w * (f / (f.pow(2).mean(-1, keepdim=True).sqrt() + eps)).to(x.dtype)
    ),
    "epsilon is missing: a vector of zeros would be divided by 0": lambda x, f, w, eps: (
        w * (f / f.pow(2).mean(-1, keepdim=True).sqrt()).to(x.dtype)
    ),
    "you subtract the mean: that is LayerNorm; RMSNorm only divides": lambda x, f, w, eps: (
        w * ((f - f.mean(-1, keepdim=True)) * torch.rsqrt(f.var(-1, keepdim=True, correction=0) + eps)).to(x.dtype)
    ),
    "you take the sum of the squares; it is their mean, so that the size does not depend on the width": lambda x, f, w, eps: (
        w * (f * torch.rsqrt(f.pow(2).sum(-1, keepdim=True) + eps)).to(x.dtype)
    ),
    "the mean runs over all numbers of the batch; each vector (the last axis) has its own": lambda x, f, w, eps: (
        w * (f * torch.rsqrt(f.pow(2).mean() + eps)).to(x.dtype)
    ),
    "the mean runs over the first axis; it is over the last one, the numbers of one vector": lambda x, f, w, eps: (
        w * (f * torch.rsqrt(f.pow(2).mean(0, keepdim=True) + eps)).to(x.dtype)
    ),
    "the root is missing: you divide by the mean square itself": lambda x, f, w, eps: w * (f / (f.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype),
    "the weight is missing": lambda x, f, w, eps: (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype),
    "you compute in the dtype of x: in float16 the square of 300 is infinite; go to float32 first and come back last": lambda x, f, w, eps: (
        w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))
    ),
    "the result is float32; go back to the dtype of x before you multiply by the weight": lambda x, f, w, eps: (
        w * (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps))
    ),
    "you multiply by the weight in float32 and round after; LLaMA rounds first, and the weights were trained with that": lambda x, f, w, eps: (
        w.float() * (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps))
    ).to(x.dtype),
}.items():
    mistake("rms_norm", "rms_norm", sentence)(norm_variant(compute))


def mlp_variant(forward, bias=False):
    class MLP(language_model.MLP):
        def __init__(self, config):
            super().__init__(config)
            if bias:
                self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    MLP.forward = forward
    return MLP


for sentence, forward in {
    "silu is on the up branch; it is the gate that is squashed": lambda self, x: self.down_proj(self.gate_proj(x) * F.silu(self.up_proj(x))),
    "the branches are added; the gate multiplies": lambda self, x: self.down_proj(F.silu(self.gate_proj(x)) + self.up_proj(x)),
    "your gate is a sigmoid; silu(z) is z * sigmoid(z)": lambda self, x: self.down_proj(torch.sigmoid(self.gate_proj(x)) * self.up_proj(x)),
    "your gate is a GELU; LLaMA's is silu": lambda self, x: self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x)),
    "your gate is a ReLU; LLaMA's is silu": lambda self, x: self.down_proj(F.relu(self.gate_proj(x)) * self.up_proj(x)),
    "silu runs over the product; it is for the gate alone": lambda self, x: self.down_proj(F.silu(self.gate_proj(x) * self.up_proj(x))),
    "up_proj is not used: nothing passes the gate but the gate": lambda self, x: self.down_proj(F.silu(self.gate_proj(x))),
    "x is added here already; the layer adds it, and twice is once too often": lambda self, x: (
        x + self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
    ),
}.items():
    mistake("mlp", "MLP", sentence)(mlp_variant(forward))
mistake("mlp", "MLP", "down_proj has a bias, but LLaMA's linear maps have none: bias=False")(mlp_variant(language_model.MLP.forward, True))


def decoder_variant(forward, eps=None):
    class DecoderLayer(language_model.DecoderLayer):
        def __init__(self, config):
            super().__init__(config)
            if eps is not None:
                self.input_layernorm, self.post_attention_layernorm = (language_model.RMSNorm(config.hidden_size, eps) for _ in range(2))

    if forward:
        DecoderLayer.forward = forward
    return DecoderLayer


def decoder_forward(first, second):
    def forward(self, x, cos, sin, layer, cache, start, implementation):
        def attend(y, layer=layer, start=start):
            return self.self_attn(y, cos, sin, layer, cache, start, implementation)

        middle = first(self, x, attend)
        return second(self, x, middle, attend)

    return forward


def own_first(self, x, attend):
    return x + attend(self.input_layernorm(x))


for sentence, first, second in (
    (
        NO_RESIDUAL,
        lambda self, x, attend: attend(self.input_layernorm(x)),
        lambda self, x, y, attend: self.mlp(self.post_attention_layernorm(y)),
    ),
    (
        POST_NORM,
        lambda self, x, attend: self.input_layernorm(x + attend(x)),
        lambda self, x, y, attend: self.post_attention_layernorm(y + self.mlp(y)),
    ),
    (
        NORMED_RESIDUAL,
        lambda self, x, attend: self.input_layernorm(x) + attend(self.input_layernorm(x)),
        lambda self, x, y, attend: self.post_attention_layernorm(y) + self.mlp(self.post_attention_layernorm(y)),
    ),
    (PARALLEL, own_first, lambda self, x, y, attend: y + self.mlp(self.post_attention_layernorm(x))),
    (
        "input_layernorm is used twice; the MLP has a norm of its own, post_attention_layernorm",
        own_first,
        lambda self, x, y, attend: y + self.mlp(self.input_layernorm(y)),
    ),
    (
        "the norms have changed places: input_layernorm is before attention, post_attention_layernorm before the MLP",
        lambda self, x, attend: x + attend(self.post_attention_layernorm(x)),
        lambda self, x, y, attend: y + self.mlp(self.input_layernorm(y)),
    ),
    (
        "the norm before the MLP is missing; it is the one with the misleading name, post_attention_layernorm",
        own_first,
        lambda self, x, y, attend: y + self.mlp(y),
    ),
    (
        "the norm before attention is missing",
        lambda self, x, attend: x + attend(x),
        lambda self, x, y, attend: y + self.mlp(self.post_attention_layernorm(y)),
    ),
    (FIRST_RESIDUAL, own_first, lambda self, x, y, attend: x + self.mlp(self.post_attention_layernorm(y))),
    (
        "every layer writes into the cache of layer 0: pass `layer` on",
        lambda self, x, attend: x + attend(self.input_layernorm(x), layer=0),
        lambda self, x, y, attend: y + self.mlp(self.post_attention_layernorm(y)),
    ),
    (
        "`start` is not passed on: padding on the left is visible",
        lambda self, x, attend: x + attend(self.input_layernorm(x), start=None),
        lambda self, x, y, attend: y + self.mlp(self.post_attention_layernorm(y)),
    ),
):
    mistake("decoder_layer", "DecoderLayer", sentence)(decoder_variant(decoder_forward(first, second)))
mistake("decoder_layer", "DecoderLayer", "your norms have eps 1e-6 built in; take it from config.rms_norm_eps")(decoder_variant(None, 1e-6))


# ---------------------------------------------------------------------------------------------------------------- 07 the bridge
def projector_variant(between=F.gelu, always=False, never=False, last=False, biased=True, residual=False):
    class Projector(nn.Module):
        def __init__(self, config):
            super().__init__()
            width = config.text_config.hidden_size
            self.linear_1 = nn.Linear(config.vision_config.hidden_size, width, bias=biased)
            two = (config.projector_type == "mlp2x_gelu" or always) and not never
            self.linear_2 = nn.Linear(width, width, bias=biased) if two else None

        def forward(self, features):
            x = self.linear_1(features)
            if self.linear_2 is None:
                return x
            y = self.linear_2(between(x))
            y = y + x if residual else y
            return F.gelu(y) if last else y

    return Projector


for sentence, options in {
    "the GELU between the two maps is missing: two linear maps in a row are only one": {"between": lambda x: x},
    "your GELU is the tanh approximation; LLaVA's is the exact one": {"between": lambda x: F.gelu(x, approximate="tanh")},
    "between the maps stands a ReLU; LLaVA-1.5 has a GELU": {"between": F.relu},
    "between the maps stands the tower's quick GELU; the projector has the exact one": {"between": vision.quick_gelu},
    "a GELU follows the second map, too: the embeddings could hardly be negative": {"last": True},
    "linear_2 is there even when projector_type is linear: then it must be None": {"always": True},
    "linear_2 is never there; with projector_type mlp2x_gelu there are two maps": {"never": True},
    "your maps have no bias; LLaVA's have one": {"biased": False},
    "you add the first map's output to the second's: the projector has no residual path": {"residual": True},
}.items():
    mistake("projector", "Projector", sentence)(projector_variant(**options))


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
    "each row of the batch begins again with the first picture; the rows of image_features go on from one to the next": {"place": each_row_anew},
    "the picture's rows are put in front of the text; they belong where the placeholders are": {"place": in_front},
    "the rows come in reverse order": {"place": lambda e, m, f: e.masked_scatter(m[..., None], f.flip(0))},
    "the placeholder's id is embedded, but it may be larger than the table: put another id in its place first": {"safe": False},
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


# ---------------------------------------------------------------------------------------------------------------- 08 speaking
def append_variant(begin=lambda self, T: self.length, returned="all", moves=False, check=True, values="v", layer_of=lambda layer: layer):
    def append(self, layer, k, v):
        T = k.shape[2]
        end = self.length + T
        if check and end > self.capacity + (check == "late"):
            raise ValueError("the cache is full")
        layer, at = layer_of(layer), begin(self, T)
        self.keys[layer, :, :, at : at + T] = k
        self.values[layer, :, :, at : at + T] = v if values == "v" else k
        if moves:
            self.length = end
        keys, stored = self.keys[layer], self.values[layer]
        if returned == "new":
            return k, v
        if returned == "capacity":
            return keys, stored
        shown = {"all": end, "old": end - T, "one less": end - 1}[returned]
        return keys[:, :, :shown], stored[:, :, :shown]

    return append


for sentence, options in {
    "you always write at position 0: the new positions come after the `length` that are there": {"begin": lambda self, T: 0},
    "you write one position too late: the first free one is number `length`": {"begin": lambda self, T: min(self.length + 1, self.capacity - T)},
    "you give back the new positions alone; the queries need all S of them": {"returned": "new"},
    "you give back the whole capacity: what lies behind the filled positions was never written": {"returned": "capacity"},
    "you give back only what was there before; the new positions belong to it": {"returned": "old"},
    "you change self.length: the model does that, once, after its last layer; here every layer would count": {"moves": True},
    "the keys are stored as values, too": {"values": "k"},
    "every layer writes into layer 0": {"layer_of": lambda layer: 0},
    "a full cache must raise ValueError; yours fails in another way or not at all": {"check": False},
    "the new positions are not all given back: the last one is missing": {"returned": "one less"},
}.items():
    mistake("kv_cache", "append", sentence)(append_variant(**options))


def sample_variant(heat=lambda x, t: x / t, greedy=True, k=generation.keep_top_k, p=generation.keep_top_p, order="kp", choose=None, shift=True):
    def sample(logits, temperature=0.0, top_k=0, top_p=1.0, generator=None):
        if temperature == 0:
            return logits.argmax(-1) if greedy is True else greedy(logits)
        logits = logits.double()
        logits = heat(logits - logits.max(-1, keepdim=True).values if shift else logits.float(), temperature)
        for name in order:
            if name == "k" and 0 < top_k < logits.shape[-1]:
                logits = k(logits, top_k)
            if name == "p" and top_p < 1:
                logits = p(logits, top_p)
        if choose:
            return choose(logits, generator)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[..., 0]

    return sample


def top_p_without_crossing(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    drop = ordered.softmax(-1).cumsum(-1) > p
    drop[..., 0] = False
    return logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)


def top_p_unsorted(logits, p):
    ordered, _ = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    drop = probabilities.cumsum(-1) - probabilities >= p
    drop[..., 0] = False
    return logits.masked_fill(drop, -math.inf)


def top_p_by_height(logits, p):
    probabilities = logits.softmax(-1)
    return logits.masked_fill((probabilities < p) & (probabilities < probabilities.amax(-1, keepdim=True)), -math.inf)


for sentence, options in {
    "you multiply by the temperature; dividing by a high one makes the choices more alike": {"heat": lambda x, t: x * t},
    "the temperature is not used": {"heat": lambda x, t: x},
    "at temperature 0 nothing is drawn: take the likeliest id": {
        "greedy": lambda x: torch.multinomial(x.float().softmax(-1), 1, generator=torch.Generator().manual_seed(0))[..., 0]
    },
    "top_k is not used": {"k": lambda x, k: x},
    "top_k keeps k + 1 ids": {"k": lambda x, k: generation.keep_top_k(x, min(k + 1, x.shape[-1]))},
    "of ids that tie for place k some are dropped; they all stay": {
        "k": lambda x, k: torch.full_like(x, -math.inf).scatter(-1, x.topk(k).indices, x.topk(k).values)
    },
    "top_p is not used": {"p": lambda x, p: x},
    "top_p drops the id that crosses the line; what is kept has to sum to at least top_p": {"p": top_p_without_crossing},
    "top_p's mask is in the order of the sorted ids: bring it back to the ids' own order (scatter)": {"p": top_p_unsorted},
    "top_p is compared with each probability; it is compared with the sum of the likelier ones": {"p": top_p_by_height},
    "top_p cuts before top_k; top_k comes first": {"order": "pk"},
    "you take the likeliest id at every temperature; above 0 it is drawn": {"choose": lambda x, g: x.argmax(-1)},
    "a tiny temperature overflows: subtract the largest logit first, and compute in float64": {"shift": False},
    "you draw from equal chances: multinomial needs the softmax of the logits": {
        "choose": lambda x, g: torch.multinomial((x > -math.inf).double(), 1, generator=g)[..., 0]
    },
    "your ids have the shape (B, 1); (B,) is asked for": {
        "greedy": lambda x: x.argmax(-1, keepdim=True),
        "choose": lambda x, g: torch.multinomial(x.softmax(-1), 1, generator=g),
    },
}.items():
    mistake("sample", "sample", sentence)(sample_variant(**options))


# ---------------------------------------------------------------------------------------------------------------- 11 training
def trainable_variant(learns, freeze=True, returns=False):
    def set_trainable(model, stage):
        for name, parameter in model.named_parameters():
            if learns(name, stage):
                parameter.requires_grad = True
            elif freeze:
                parameter.requires_grad = False
        return model if returns else None

    return set_trainable


def both(name, stage):
    return name.startswith(("projector.", "language_model.")[:stage])


for sentence, options in {
    "everything learns in yours: the vision tower is frozen in both stages": {"learns": lambda name, stage: True},
    "the vision tower learns in stage 2; LLaVA keeps it frozen": {"learns": lambda name, stage: stage == 2 or name.startswith("projector.")},
    "the language model learns in stage 1; there the projector is alone": {
        "learns": lambda name, stage: name.startswith(("projector.", "language_model."))
    },
    "only the projector learns in stage 2, too; the language model joins it there": {"learns": lambda name, stage: name.startswith("projector.")},
    "the projector is frozen in stage 2; it goes on learning beside the language model": {
        "learns": lambda name, stage: name.startswith("projector." if stage == 1 else "language_model.")
    },
    "you freeze nothing: a parameter that learns by default goes on learning, so set False as well": {"learns": both, "freeze": False},
    "the stages have changed places": {"learns": lambda name, stage: both(name, 3 - stage)},
    "it returns the model; it changes the model that it was given, and returns nothing": {"learns": both, "returns": True},
}.items():
    mistake("trainable", "set_trainable", sentence)(trainable_variant(**options))


@mistake("trainable", "set_trainable", "it only freezes: set True for what learns, or a parameter that was frozen before stays frozen")
def only_freezes(model, stage):
    for name, parameter in model.named_parameters():
        if not both(name, stage):
            parameter.requires_grad = False


def schedule_variant(rise=lambda step, W: (step + 1) / W, fall=lambda share: 0.5 * (1 + math.cos(math.pi * share)), whole=False, least=1, warm=None):
    def learning_rate(step, config):
        W = max(least, round(config.max_steps * config.warmup_ratio)) if warm is None else warm(config)
        if step < W:
            return config.learning_rate * rise(step, W)
        return config.learning_rate * fall(step / config.max_steps if whole else (step - W) / max(1, config.max_steps - W))

    return learning_rate


for sentence, options in {
    "the first step has the rate 0 and learns nothing: it is (step + 1) / W": {"rise": lambda step, W: step / W},
    "the warm-up is missing: the rate has its peak from the first step on": {"rise": lambda step, W: 1.0},
    "the rate falls as a straight line; it is half a cosine": {"fall": lambda share: 1 - share},
    "the rate stays at its peak after the warm-up; it falls as half a cosine": {"fall": lambda share: 1.0},
    "the 0.5 is missing: the rate jumps to twice its peak after the warm-up": {"fall": lambda share: 1 + math.cos(math.pi * share)},
    "that is a whole cosine: the rate comes back up at the end; the angle goes to pi, not to 2 pi": {
        "fall": lambda share: 0.5 * (1 + math.cos(2 * math.pi * share))
    },
    "that is a quarter of a cosine: cos goes from 1 to -1, and 1 + cos from 2 to 0": {"fall": lambda share: math.cos(math.pi * share / 2)},
    "the cosine begins at step 0; it begins where the warm-up ends, or the rate jumps there": {"whole": True},
    "the sign is wrong: after the warm-up the rate begins at 0 and rises": {"fall": lambda share: 0.5 * (1 - math.cos(math.pi * share))},
    "the warm-up may be 0 steps in yours; it has at least one": {"least": 0, "fall": lambda share: 0.5 * (1 + math.cos(math.pi * share))},
    "warmup_ratio is a share of the steps, not a number of steps": {"warm": lambda config: max(1, round(config.warmup_ratio))},
}.items():
    mistake("schedule", "learning_rate", sentence)(schedule_variant(**options))


def loss_variant(shift=1, ignore=True, reduction="mean", low=False, use_mask=True, check=True, hidden_shift=0):
    def next_token_loss(language_model, inputs_embeds, labels, attention_mask=None):
        hidden = language_model.hidden_states(inputs_embeds, attention_mask if use_mask else None)
        logits = language_model.logits(hidden)
        logits = logits if low else logits.float()
        T = labels.shape[1]
        if shift == 1:
            logits, labels = logits[:, : T - 1], labels[:, 1:]
        elif shift == -1:
            logits, labels = logits[:, 1:], labels[:, : T - 1]
        elif shift == 2:
            logits, labels = logits[:, : max(T - 2, 0)], labels[:, 2:]
        if check and not (labels != -100).any():
            raise ValueError("no label is a target")
        if reduction == "rows":
            losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
            counts = (labels != -100).sum(1)
            return (losses.sum(1) / counts.clamp(min=1))[counts > 0].mean()
        if reduction == "all":
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") / labels.numel()
        if not ignore:
            labels = labels.clamp(min=0)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100 if ignore != "zero" else 0, reduction=reduction)

    return next_token_loss


for sentence, options in {
    "the labels are not shifted: the logits at t are compared with label t, the word that stands there already": {"shift": 0},
    "you shift the wrong way: the logits at t must be compared with label t + 1, not with t - 1": {"shift": -1},
    "you shift twice: the logits at t are compared with label t + 2": {"shift": 2},
    "the labels of -100 count in yours, as if they were id 0": {"ignore": False},
    "you take the sum; it is the mean over all targets": {"reduction": "sum"},
    "you divide by the number of positions; it is the mean over the targets alone": {"reduction": "all"},
    "you average each row and then the rows: a short answer would weigh as much as a long one; it is the mean over all targets of the batch": {
        "reduction": "rows"
    },
    "the loss is computed in bfloat16, which has three digits: go to float32 first": {"low": True},
    "attention_mask is not passed on: padding on the left is read as text": {"use_mask": False},
    "without a target the loss is 0 / 0 = NaN: raise ValueError": {"check": False},
}.items():
    mistake("loss", "next_token_loss", sentence)(loss_variant(**options))
