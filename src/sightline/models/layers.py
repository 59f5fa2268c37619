"""The pre-norm residual attention block that both Transformers are made of (paper section 2.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.config import Activation


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the approximation of GELU that the published weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        n, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (n, length, 3 * width)
        q, k, v = qkv.view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (n, heads, length, head_dim)
        return self.out_proj(y.transpose(1, 2).reshape(n, length, width))


class MLP(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, width: int, mlp_width: int, activation: Activation):
        super().__init__()
        self.c_fc = nn.Linear(width, mlp_width)
        self.gelu = QuickGELU() if activation == "quick_gelu" else nn.GELU()
        self.c_proj = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class ResidualAttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: Activation):
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width, activation)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.attn(self.ln_1(x), causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of residual attention blocks: (n, length, width) to the same shape."""

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int, activation: Activation):
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(
            *(ResidualAttentionBlock(width, heads, mlp_width, activation) for _ in range(layers))
        )

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        for block in self.resblocks:
            x = block(x, causal)
        return x

    @torch.no_grad()
    def initialize(self) -> None:
        """GPT-2's scaled initialisation, as the paper's code does it: deeper residual branches start smaller."""
        projection_std = self.width**-0.5 * (2 * self.layers) ** -0.5
        for module in self.modules():
            if isinstance(module, Attention):
                nn.init.normal_(module.in_proj_weight, std=self.width**-0.5)
                nn.init.zeros_(module.in_proj_bias)
                nn.init.normal_(module.out_proj.weight, std=projection_std)
                nn.init.zeros_(module.out_proj.bias)
            elif isinstance(module, MLP):
                nn.init.normal_(module.c_fc.weight, std=(2 * self.width) ** -0.5)
                nn.init.normal_(module.c_proj.weight, std=projection_std)
