"""Attention on maps of features (B, C, h, w): over channels, over places, with relative places.

Each adds gamma times what it attends to, and gamma starts at 0: the identity, until it is trained.
Energies are float32 also under autocast: a sum over the places may be beyond half precision.
"""

from typing import Literal

import torch
from torch import nn

Rpe = Literal["axial", "released", "none"]


class ChannelAttention(nn.Module):
    """Channels attend to the channels that are unlike them; gamma is all there is to learn.

    E = X X^T over the places, A = softmax over each row of rowmax(E) - E, out = gamma A X + X.
    The form of MBA-Net, Baisa et al. 2022, arXiv:2108.02234, and of DANet, Fu et al. 2019,
    arXiv:1809.02983, section 3.3, as that was published in code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """maps: (B, C, h, w), of any size; the same shape comes back."""
        with torch.autocast(maps.device.type, enabled=False):
            x = maps.flatten(2).float()  # (B, C, N)
            energy = x @ x.transpose(1, 2)  # (B, C, C)
            unlike = energy.amax(dim=2, keepdim=True) - energy
            attended = unlike.softmax(dim=2) @ x
        return self.gamma * attended.view_as(maps).to(maps.dtype) + maps


class SelfAttention(nn.Module):
    """Places attend to places, by content alone.

    s = f(x)^T g(x), softmax over the places that are attended to, out = gamma v(h(x) A^T) + x, with
    f, g, h: C -> C / reduction and v: C / reduction -> C, linear at each place. Zhang et al. 2019,
    arXiv:1805.08318, section 3 (a non-local block: Wang et al. 2018, arXiv:1711.07971).
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.query = nn.Conv2d(channels, inner, 1, bias=False)
        self.key = nn.Conv2d(channels, inner, 1, bias=False)
        self.value = nn.Conv2d(channels, inner, 1, bias=False)
        self.out = nn.Conv2d(inner, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """maps: (B, C, h, w), of any size; the same shape comes back."""
        q, k, v = self.query(maps), self.key(maps), self.value(maps)  # (B, inner, h, w) each
        return self.gamma * self.out(_attend(q, k, v)) + maps


class SpatialAttention(nn.Module):
    """Places attend to places, by content and by how far apart they are: MBA-Net's SAM-RPE.

    q, k: C -> C / reduction, v: C -> C, each a 1 x 1 convolution, BatchNorm and ReLU;
    out = gamma (v A^T + E_h + E_w) + x with A = softmax(q^T k) over the places attended to. The
    position terms pass through a BatchNorm each; they have no softmax. Their tables
    R_h (2 h - 1, C / reduction) and R_w (2 w - 1, C / reduction) start from N(0, 1). With x, y the
    row and column of a query, i and j those of a value:

    `axial`, as the paper has it: E_h[c, x, y] = sum_i (q[x, y] . R_h[i - x]) v[c, i, y], and
    E_w[c, x, y] = sum_j (q[x, y] . R_w[j - y]) v[c, x, j].
    `released`, as its published code computes it: E[c, x, y] = sum_ij (q[x, y] . R[j - i])
    v[c, i, j], for both tables. It depends on the column minus the row of the value, not on the
    distance to the query, and asks for maps as high as wide.
    `none`: no position terms, any size of map.

    size: (h, w) of the maps. Raises ValueError on another rpe, and on `released` with h != w.
    Baisa et al. 2022, arXiv:2108.02234, section 3; after Bello et al. 2019, arXiv:1904.09925.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], rpe: Rpe = "axial", reduction: int = 8
    ) -> None:
        super().__init__()
        if rpe not in ("axial", "released", "none"):
            raise ValueError(f"rpe: 'axial', 'released' or 'none', not {rpe!r}")
        if rpe == "released" and size[0] != size[1]:
            raise ValueError(f"rpe 'released' asks for maps as high as wide, not {size}; use axial")
        inner = max(1, channels // reduction)
        self.size, self.rpe = size, rpe
        self.query = _embedding(channels, inner)
        self.key = _embedding(channels, inner)
        self.value = _embedding(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(()))
        if rpe != "none":
            self.table_h = nn.Parameter(torch.randn(2 * size[0] - 1, inner))
            self.table_w = nn.Parameter(torch.randn(2 * size[1] - 1, inner))
            self.norm_h = nn.BatchNorm2d(channels)
            self.norm_w = nn.BatchNorm2d(channels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """maps: (B, C, h, w); the same shape comes back.

        Raises ValueError on maps of another size than the tables are for.
        """
        if self.rpe != "none" and maps.shape[2:] != self.size:
            raise ValueError(f"maps: expected (h, w) = {self.size}, got {tuple(maps.shape[2:])}")
        q, v = self.query(maps), self.value(maps)
        out = _attend(q, self.key(maps), v)
        if self.rpe == "axial":
            over_rows, over_columns = _axial(q, v, self.table_h, self.table_w)
            out = out + self.norm_h(over_rows) + self.norm_w(over_columns)
        elif self.rpe == "released":
            out = out + self.norm_h(_released(q, v, self.table_h))
            out = out + self.norm_w(_released(q, v, self.table_w))
        return self.gamma * out + maps


def _embedding(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 1), nn.BatchNorm2d(out), nn.ReLU())


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q, k: (B, K, h, w); v: (B, V, h, w). Returns (B, V, h, w): a weighted mean for each place."""
    with torch.autocast(q.device.type, enabled=False):
        energy = q.flatten(2).transpose(1, 2).float() @ k.flatten(2).float()  # (B, N, N of k)
        out = v.flatten(2).float() @ energy.softmax(dim=2).transpose(1, 2)
    return out.view_as(v).to(v.dtype)


def _offsets(size: int, device: torch.device) -> torch.Tensor:
    """(size, size) int: row of a table of 2 size - 1 for the offset (second - first index)."""
    places = torch.arange(size, device=device)
    return places[None, :] - places[:, None] + size - 1


def _axial(
    q: torch.Tensor, v: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """E_h and E_w of `axial`, (B, C, h, w) each."""
    rows = table_h[_offsets(v.shape[2], v.device)]  # (h of the query, h of the value, K)
    columns = table_w[_offsets(v.shape[3], v.device)]
    bias_h = torch.einsum("bkxy,xik->bxyi", q, rows)
    bias_w = torch.einsum("bkxy,yjk->bxyj", q, columns)
    over_rows = torch.einsum("bxyi,bciy->bcxy", bias_h, v)
    return over_rows, torch.einsum("bxyj,bcxj->bcxy", bias_w, v)


def _released(q: torch.Tensor, v: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """E of `released`, (B, C, h, w)."""
    bias = torch.einsum("bkxy,ok->bxyo", q, table)  # (B, h, w, 2 L - 1)
    bias = bias[..., _offsets(v.shape[2], v.device)]  # (B, h, w, row i, column j of the value)
    return torch.einsum("bxyij,bcij->bcxy", bias, v)
