"""Attention of PyTorch and torchvision in a form that can lose heads.

Their own code takes the width inside from the width outside, so that no head can go. The forms here compute the same
with the number of heads that the module holds, and as wide a head as its weights make it. Parameters, buffers and
attributes stay: only the class of the module is another, which a list of edits can name without any pickle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from penjing.errors import InputError
from torch import Tensor, nn
from torch.nn import functional


def openable(part: nn.Module) -> bool:
    """Tell whether a module has a form that can lose heads, and is not in that form yet."""
    if type(part) is nn.MultiheadAttention:
        return part._qkv_same_embed_dim and part.bias_k is None and not part.add_zero_attn
    return _name(type(part)) in _FORMS


def opened(part: nn.Module) -> bool:
    """Tell whether a module has the form that can lose heads."""
    return type(part) in _OPENED.values()


def open_heads(part: nn.Module) -> None:
    """Give a module the form that can lose heads; do nothing where it has it; InputError where there is none."""
    kind = type(part)
    if opened(part):
        return
    if not openable(part):
        raise InputError(
            f"{kind.__qualname__} has no form that can lose heads.", hint="It is another network."
        )
    if kind not in _OPENED:
        _OPENED[kind] = type(f"Headed{kind.__name__}", (kind,), {"forward": _FORMS[_name(kind)]})
    part.__class__ = _OPENED[kind]
    if isinstance(part, nn.MultiheadAttention):
        # nn.TransformerEncoderLayer has a fused operator for attention that is as wide inside as outside
        part._qkv_same_embed_dim = False


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _split(x: Tensor, heads: int) -> Tensor:
    """Return [B, heads, N, D] of [B, N, heads * D]."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def _multihead(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Do what nn.MultiheadAttention.forward does; NotImplementedError for one mask a head."""
    single, turned = query.ndim == 2, query.ndim == 3 and not self.batch_first
    alike = query is key and key is value
    inputs = [query] if alike else [query, key, value]
    if single:
        inputs = [x.unsqueeze(0) for x in inputs]
    elif turned:
        inputs = [x.transpose(0, 1) for x in inputs]
    weight, bias = self.in_proj_weight, self.in_proj_bias
    if alike:
        parts = functional.linear(inputs[0], weight, bias).chunk(3, -1)
    else:
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        parts = tuple(map(functional.linear, inputs, weight.chunk(3), biases))
    q, k, v = (_split(part, self.num_heads) for part in parts)
    mask = _mask(attn_mask, key_padding_mask, q)
    dropout = self.dropout if self.training else 0.0
    weights = None
    if need_weights:
        weights = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        weights = (weights if mask is None else weights + mask).softmax(-1)
        weights = functional.dropout(weights, dropout)
        y = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights.squeeze(0) if single else weights
    else:
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    y = functional.linear(y.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
    return (y.squeeze(0) if single else y.transpose(0, 1) if turned else y), weights


def _mask(attention: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
    """Return what is added to the scores [B, heads, N, M] for masks [N, M] and [B, M], of numbers or True to hide."""
    if attention is not None and attention.ndim > 2:
        raise NotImplementedError("one mask for each head")
    total = None
    for mask in (attention, None if padding is None else padding.reshape(like.shape[0], 1, 1, -1)):
        if mask is not None:
            if not mask.is_floating_point():
                mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)
            total = mask if total is None else total + mask
    return total


def _windowed(self: Any, x: Tensor) -> Tensor:
    """Do what ShiftedWindowAttention.forward of Swin and Swin V2 does, [B, H, W, C] to the same."""
    batch, height, width, _ = x.shape
    tall, wide = self.window_size
    x = functional.pad(x, (0, 0, 0, -width % wide, 0, -height % tall))
    rows, columns = x.shape[1] // tall, x.shape[2] // wide
    # a single window has no neighbour to be shifted into
    shift = [s if many > 1 else 0 for s, many in zip(self.shift_size, (rows, columns), strict=True)]
    bias = self.get_relative_position_bias()
    if any(shift):
        x = x.roll((-shift[0], -shift[1]), (1, 2))
        seams = _seams((rows, tall, shift[0]), (columns, wide, shift[1]), x)
        bias = bias + seams.repeat(batch, 1, 1, 1)
    x = x.reshape(batch, rows, tall, columns, wide, -1).transpose(2, 3)
    y = _attend(self, x.reshape(-1, tall * wide, x.shape[-1]), bias)
    y = functional.dropout(y, self.dropout, self.training)
    y = y.reshape(batch, rows, columns, tall, wide, -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if any(shift):
        y = y.roll(tuple(shift), (1, 2))
    return y[:, :height, :width].contiguous()


def _attend(self: Any, x: Tensor, bias: Tensor) -> Tensor:
    """Return attention within windows [B * windows, N, C]; that of Swin V2 is by cosine, its keys without bias."""
    dropout = self.attention_dropout if self.training else 0.0
    q, k, v = functional.linear(x, self.qkv.weight).chunk(3, -1)
    if self.qkv.bias is not None:
        of_q, of_k, of_v = self.qkv.bias.chunk(3)
        q, v = q + of_q, v + of_v
        k = k if hasattr(self, "logit_scale") else k + of_k
    q, k, v = (_split(part, self.num_heads) for part in (q, k, v))
    scale = None
    if hasattr(self, "logit_scale"):
        largest = self.logit_scale.clamp(max=math.log(100.0)).exp()
        q, k, scale = functional.normalize(q, dim=-1) * largest, functional.normalize(k, dim=-1), 1.0
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    return functional.linear(y.transpose(1, 2).flatten(2), self.proj.weight, self.proj.bias)


def _seams(first: tuple[int, int, int], second: tuple[int, int, int], like: Tensor) -> Tensor:
    """Return what hides pixels of a shifted window that come from the other edge of the image: [windows, 1, N, N].

    For each axis: the number of windows, the pixels of one, and the shift.
    """
    marks = []
    for many, size, shift in (first, second):
        place = torch.arange(many * size, device=like.device)
        marks.append((place >= many * size - shift).long() if shift else torch.zeros_like(place))
    region = marks[0][:, None] * 2 + marks[1][None, :]
    windows = region.reshape(first[0], first[1], second[0], second[1]).transpose(1, 2)
    flat = windows.reshape(first[0] * second[0], -1)
    apart = flat[:, :, None] != flat[:, None, :]
    return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, -100.0).unsqueeze(1)


def _partitioned(self: Any, x: Tensor) -> Tensor:
    """Do what RelativePositionalMultiHeadAttention.forward of MaxViT does, [B, G, P, C] to the same."""
    q, k, v = (_split(part, self.n_heads) for part in self.to_qkv(x.flatten(0, 1)).chunk(3, -1))
    bias = self.get_relative_positional_bias()
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale_factor)
    merged: Tensor = self.merge(y.transpose(1, 2).flatten(2))
    return merged.reshape(*x.shape[:-1], -1)


_FORMS: dict[str, Callable[..., Any]] = {
    "torch.nn.modules.activation.MultiheadAttention": _multihead,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": _windowed,
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": _windowed,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": _partitioned,
}
_OPENED: dict[type, type] = {}
