"""A layer of the decoder by our kernels: what `minillava.language_model.DecoderLayer` computes, in a third of the
launches.

    h = x + o_proj(attention(rope(q), rope(k), v))          with q, k, v = projections of rms_norm(x)
    out = h + down_proj(swiglu(gate_proj(n), up_proj(n)))   with n = rms_norm(h)

Between the seven products, which are PyTorch's, stand RMSNorm, RoPE with the write into the cache, attention, the first
sum with the second RMSNorm, and SwiGLU: one kernel each, and attention of one new token does RoPE, too. The products
are called as the layer's own modules, so that LoRA's are right as well.
"""

from minillava.kernels.flash_attention import flash_attention
from minillava.kernels.flash_decoding import flash_decoding
from minillava.kernels.rms_norm import add_rms_norm, rms_norm
from minillava.kernels.rope import rope, rope_into_cache
from minillava.kernels.swiglu import swiglu


def decoder_layer(layer, x, cos, sin, index, cache, start):
    """x (B, T, C) -> (B, T, C); `layer` is number `index`, everything else is as DecoderLayer gets it. With a cache there
    are no gradients.
    """
    B, T, _ = x.shape
    part, norm, second_norm = layer.self_attn, layer.input_layernorm, layer.post_attention_layernorm
    normed = rms_norm(x, norm.weight, norm.eps)  # (B, T, C)
    q, k, v = (proj(normed).view(B, T, -1, part.head_dim) for proj in (part.q_proj, part.k_proj, part.v_proj))
    attended = attend(q, k, v, cos, sin, index, cache, start)  # (B, T, H, D)
    x, normed = add_rms_norm(x, part.o_proj(attended.reshape(B, T, -1)), second_norm.weight, second_norm.eps)
    mlp = layer.mlp
    return x + mlp.down_proj(swiglu(mlp.gate_proj(normed), mlp.up_proj(normed)))  # (B, T, C)


def attend(q, k, v, cos, sin, index, cache, start):
    """q (B, T, H, D), k and v (B, T, K, D), not turned yet -> (B, T, H, D)."""
    if cache is None:
        q, k = rope(q, k, cos, sin)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D), (B, K, T, D)
        return flash_attention(q, k, v, causal=True, start=start).transpose(1, 2)
    keys, values = cache.places(index, k.shape[1])  # (B, K, S, D)
    if q.shape[1] == 1:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, 1, D), (B, K, 1, D)
        out = flash_decoding(q, keys, values, start=start, past=cache.past, new=(k, v, cos, sin))
        return out.transpose(1, 2)
    new = slice(keys.shape[2] - q.shape[1], None)
    q = rope_into_cache(q, k, v, cos, sin, keys[:, :, new], values[:, :, new])
    return flash_attention(q.transpose(1, 2), keys, values, causal=True, start=start).transpose(1, 2)
