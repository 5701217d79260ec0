"""Known mistakes in lessons/exercises/e06_rms_norm.py."""

import torch

from lessons.mistakes.base import mistake


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
    "the root is missing: you divide by the mean square itself": lambda x, f, w, eps: (
        w * (f / (f.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    ),
    "the weight is missing": lambda x, f, w, eps: (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype),
    "you compute in the dtype of x: in float16 the square of 300 is infinite; go to float32 first and come back last": lambda x, f, w, eps: (
        w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))
    ),
    "the result is float32; go back to the dtype of x before you multiply by the weight": lambda x, f, w, eps: (
        w * (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps))
    ),
    "you multiply by the weight in float32 and round after; LLaMA rounds first, and the weights were trained with that": lambda x, f, w, eps: (
        (w.float() * (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps))).to(x.dtype)
    ),
}.items():
    mistake("rms_norm", "rms_norm", sentence)(norm_variant(compute))
