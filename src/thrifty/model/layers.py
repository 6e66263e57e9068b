"""The small parts of the decoder: linear layers, norms and rotary positions, each rounding where FSDP would.

Precision is explicit. Activations carry the compute dtype; a layer casts its weight to the dtype of its input and
multiplies in that. Whether the fp32 master weight is cast here, or FSDP's MixedPrecisionPolicy has gathered it in bf16
already, the same numbers meet in the same product. Norms compute in fp32 inside, whatever the activations are.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.distributed.tensor import DTensor

from thrifty.spec.job import ModelShape


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in: fp32 for 16-bit activations, else the dtype itself, so that fp64 stays exact."""
    return torch.promote_types(dtype, torch.float32)


def part_here(parameter: Tensor) -> Tensor:
    """What this rank computes with: the parameter, or its own part of one that tensor parallelism has split."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class Linear(nn.Linear):
    """`nn.Linear` that multiplies in the dtype of its input; it starts uninitialised (see `model.initialise`)."""

    def reset_parameters(self) -> None:
        """Nothing: values come from `model.initialise`, by parameter name."""

    def forward(self, x: Tensor) -> Tensor:  # (..., in_features) -> (..., out_features)
        bias = None if self.bias is None else part_here(self.bias).to(x.dtype)
        return F.linear(x, part_here(self.weight).to(x.dtype), bias)


class Embedding(nn.Embedding):
    """`nn.Embedding` that starts uninitialised."""

    def reset_parameters(self) -> None:
        """Nothing: values come from `model.initialise`, by parameter name."""


class Positions(Embedding):
    """Learned positions: a row for each place in the sequence."""

    def forward(self, start: int, seq: int) -> Tensor:  # -> (seq, hidden)
        return part_here(self.weight)[start : start + seq]


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that casts weight and bias to the dtype of its input; mean and variance are taken in fp32."""

    def forward(self, x: Tensor) -> Tensor:  # (..., width)
        bias = None if self.bias is None else part_here(self.bias).to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, part_here(self.weight).to(x.dtype), bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 inside (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (..., width)
        weight = part_here(self.weight).to(x.dtype)
        if x.is_cuda or is_compiling():
            return F.rms_norm(x, (x.shape[-1],), weight, self.eps)
        return _EagerRMSNorm.apply(x, weight, self.eps)  # F.rms_norm is not fused on CPU and saves two fp32 copies of x


class _EagerRMSNorm(torch.autograd.Function):
    """Saves x and one scale per row; `F.rms_norm` is the reference that the tests hold beside it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(accumulation_dtype(x.dtype))
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x.to(scale.dtype) * scale
        grad = grad.to(scale.dtype)
        grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        grad_normed = grad * weight
        along = (grad_normed * normed).mean(-1, keepdim=True)
        return grad_normed.sub_(normed.mul_(along)).mul_(scale).to(x.dtype), grad_weight, None


def gelu_(x: Tensor) -> Tensor:
    """x Phi(x) in the tanh form of GPT-2 (Hendrycks & Gimpel 2016, arXiv:1606.08415); may write over x."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.requires_grad and not is_compiling():
        return _EagerGelu.apply(x)
    return F.gelu(x, approximate="tanh")


class _EagerGelu(torch.autograd.Function):
    """(1 + tanh u) / 2 = sigmoid(2u) spares the slow tanh; x becomes y, and the slope is kept in place of x.

    Memory that is not in a cache costs more than arithmetic here, so nothing is allocated that can be written over.
    """

    CUBIC = 0.044715
    SCALE = 2 * math.sqrt(2 / math.pi)

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        scale, one = x.new_full((), _EagerGelu.SCALE), x.new_ones(())
        cubic = _EagerGelu.SCALE * _EagerGelu.CUBIC
        gate = torch.addcmul(scale, x, x, value=cubic).mul_(x).sigmoid_()  # 2u = x (scale + cubic x^2)
        slope = torch.addcmul(scale, x, x, value=3 * cubic)  # (2u)'
        ctx.mark_dirty(x)
        y = x.mul_(gate)
        slope.mul_(y)
        ctx.save_for_backward(torch.lerp(slope, one, gate, out=slope))  # gate + (1 - gate) y (2u)'
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return slope.mul_(grad)  # autograd notices a second backward


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202)."""
    return (
        F.silu(gate) * up if is_compiling() else _EagerSwiglu.apply(gate, up)
    )  # a compiler decides itself what to keep


class _EagerSwiglu(torch.autograd.Function):
    """Saves gate and up, not silu(gate): a quarter less to keep of an MLP, for one more pass in the backward."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def norm(shape: ModelShape) -> nn.Module:
    """The norm of the residual stream. Its bias goes with the others: only GPT-2's `bias: all` has one."""
    if shape.norm == "rmsnorm":
        return RMSNorm(shape.hidden, shape.norm_eps)
    return LayerNorm(shape.hidden, eps=shape.norm_eps, bias=shape.bias == "all")


def rope_tables(shape: ModelShape, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the rotary angles (Su et al. 2021, arXiv:2104.09864), for `rotate`.

    Frequencies are theta^(-2i/head_dim); with `rope_scaling` low ones are divided by `factor` and those between the two
    bounds interpolated (Llama 3.1, Hugging Face `rope_type: llama3`).

    Args:
        positions: of the tokens, (seq,).
        dtype: of the activations. Tables are in fp32, in fp64 for fp64.

    Returns:
        Two tensors (seq, 1, head_dim).
    """
    wide = accumulation_dtype(dtype)
    exponent = torch.arange(0, shape.head_dim, 2, dtype=wide, device=positions.device) / shape.head_dim
    frequency = 1.0 / shape.rope_theta**exponent  # (head_dim / 2,) radians per position
    if shape.rope_scaling is not None:
        s = shape.rope_scaling
        turns = s.original_max_positions * frequency / (2 * math.pi)  # full turns within the original context
        keep = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
        frequency = frequency * ((1 - keep) / s.factor + keep)
    angle = positions.to(wide)[:, None, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (batch, seq, heads, head_dim)
    """Turns each pair (x_i, x_{i + head_dim/2}) by its angle: one rounding, at the end."""
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)
