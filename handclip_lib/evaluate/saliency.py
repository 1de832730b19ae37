"""Where a tower looks: maps over a photograph, and which places of two photographs agree."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch.nn import functional

from handclip_lib.evaluate.embed import evaluating
from handclip_lib.models import joint, watch
from handclip_lib.models.clip import Encoder
from handclip_lib.models.mba import MBANet
from handclip_lib.models.towers import Features

Maps = npt.NDArray[np.float32]  # (B, h, w)


@dataclass(frozen=True)
class Held:
    """Photographs as an encoder gets them, each held against a reference.

    images: (B, 3, H, W) normalised; references: (B, D) of `embed.retrieval_features` with the same
    `feature`: of a gallery photograph, or the mean of an identity; codes: of `Encoder.codes_of`.
    """

    encoder: Encoder
    images: torch.Tensor
    references: npt.NDArray[np.floating]
    feature: Sequence[str] = ("pool", "proj")
    codes: torch.Tensor | None = None

    def features(self) -> Features:
        """What the encoder makes of the images."""
        return self.encoder.features(self.images, self.codes)

    def cosines(self, told: Features) -> torch.Tensor:
        """(B,) cosine of each image's retrieval feature with its reference, with gradient.

        told: of `features`. Raises ValueError on references of another shape.
        """
        joined = torch.cat([getattr(told, name) for name in self.feature], dim=1).float()
        target = torch.as_tensor(np.asarray(self.references), device=joined.device).float()
        if target.shape != joined.shape:
            raise ValueError(f"references: {tuple(target.shape)} for {tuple(joined.shape)}")
        return functional.cosine_similarity(joined, target, dim=1)


def rollout(encoder: Encoder, images: torch.Tensor, codes: torch.Tensor | None = None) -> Maps:
    """(B, h, w): the share of the pooled token that comes from each place through all blocks.

    images: (B, 3, H, W) normalised; codes: of `Encoder.codes_of`. A block's attention is the mean
    of its heads. What the class token and prompts hold is left out, so that a map sums to 1 at
    most. It knows no reference and no sign: what is attended to, not what makes two photographs
    alike. ResNet: the attention pool's one layer. Abnar & Zuidema 2020, arXiv:2005.00928,
    section 3.

    Raises TypeError on a tower whose attention is not known.
    """
    visual = encoder.visual
    vit = isinstance(visual, VisionTransformer)
    if vit and visual.attn_pool is not None:
        raise TypeError("rollout: this tower pools by queries of its own, not by a token")
    if encoder.adapter is not None and encoder.adapter.told.attention != "none":
        raise TypeError("rollout: the attention put before the last stage mixes places, too")
    with torch.no_grad(), evaluating(encoder), watch.attention_weights(visual) as weights:
        grid = encoder.features(images, codes).grid
    joined = [of_block.float().mean(dim=1) for of_block in weights]  # (B, Q, L) each
    places = slice(1, 1 + grid[0] * grid[1])
    if not vit:
        row = joined[0][:, 0]
    else:
        rolled = roll(joined, _fresh(encoder))
        row = rolled[:, 0] if visual.pool_type == "tok" else rolled[:, places].mean(dim=1)
    return _as_maps(row[:, places], grid)


def roll(weights: Sequence[torch.Tensor], fresh: int = 0) -> torch.Tensor:
    """(B, L, L), rows sum to 1: what each token of the last block has of those of the first.

    weights: (B, L, L) of each block, rows sum to 1; each block passes on half of what was there.
    fresh: so many tokens at the end that are new before each block: they hold nothing earlier.
    """
    size = weights[0].shape[-1]
    unit = torch.eye(size, device=weights[0].device)
    rolled = unit.expand_as(weights[0])
    for block in weights:
        if fresh:
            rolled = torch.cat([rolled[:, :-fresh], unit[-fresh:].expand(len(rolled), -1, -1)], 1)
        rolled = (0.5 * block + 0.5 * unit) @ rolled
    return rolled


def similarity_cam(held: Held) -> Maps:
    """(B, h, w), >= 0: which places raise the cosine of each image with its reference.

    The gradient of the cosine times the activation at each place of the last map from which the
    features are read (`models.watch.last_stage`), summed over channels: HiResCAM, Draelos & Carin
    2020, arXiv:2011.08891. Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) takes the mean of the
    gradient over places, but a class token's differs from place to place: on training persons of
    the drawn hands such maps lie less on the hand, and to blank their top places lowers the cosine
    less. 0 throughout where no place raises the cosine.

    Raises ValueError on references of another shape, TypeError on a tower without such a map.
    """
    encoder, held = held.encoder, replace(held, images=held.images.detach().requires_grad_())
    with torch.enable_grad(), evaluating(encoder), watch.last_stage(encoder.visual) as taken:
        told = held.features()
        (slope,) = torch.autograd.grad(held.cosines(told).sum(), taken[0])
    values, slopes = (_places(side.detach(), told.grid) for side in (taken[0], slope))
    return _as_maps((slopes * values).sum(dim=2).clamp(min=0), told.grid)


def pair_evidence(
    encoder: Encoder,
    query: torch.Tensor,
    gallery: torch.Tensor,
    top: int = 8,
    masks: npt.NDArray[np.floating] | None = None,
    codes: torch.Tensor | None = None,
) -> pd.DataFrame:
    """The places of two photographs that are each other's nearest, the most alike first.

    query, gallery: (3, H, W) normalised; masks: (2, H, W), 0 to 1: only places that lie half
    on the hand are compared, since an empty table resembles every other. Columns `query_row,
    query_column, gallery_row, gallery_column, similarity` (cosine, in the space of texts where the
    tower's places have a way into it: `models.joint`); at most `top` rows. Likeness of places is
    no proof that they decided: `faithfulness.deletion` tests that.
    """
    with torch.no_grad(), evaluating(encoder):
        told = encoder.features(torch.stack([query, gallery]), codes)
        unit = functional.normalize(_place_features(encoder, told).float(), dim=2)  # (2, N, E)
    width = told.grid[1]
    sim = (unit[0] @ unit[1].T).cpu().numpy()  # (N, N)
    if masks is not None:
        seen = cells(masks, told.grid).reshape(2, -1) >= 0.5
        sim = np.where(seen[0][:, None] & seen[1], sim, -np.inf)
    forth, back = sim.argmax(axis=1), sim.argmax(axis=0)
    mutual = np.flatnonzero(back[forth] == np.arange(len(sim)))
    mutual = mutual[np.isfinite(sim[mutual, forth[mutual]])]
    first = mutual[np.argsort(-sim[mutual, forth[mutual]], kind="stable")][:top]
    second = forth[first]
    return pd.DataFrame(
        {
            "query_row": first // width,
            "query_column": first % width,
            "gallery_row": second // width,
            "gallery_column": second % width,
            "similarity": sim[first, second].astype(float),
        }
    )


def on_hand(maps: Maps, masks: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(B,) share of each map's mass that lies on the hand, 0 to 1; NaN: no mass, or no mask.

    maps: (B, h, w) >= 0; masks: (B, H, W), 0 to 1, as `data.masks.hand_masks` gives them. A map of
    ones gives the hand's share of the picture, which looking nowhere in particular would score.
    """
    total = maps.sum(axis=(1, 2), dtype=np.float64)
    inside = (maps * cells(masks, (maps.shape[1], maps.shape[2]))).sum(axis=(1, 2))
    return np.divide(inside, total, out=np.full(len(maps), np.nan), where=total > 0)


def cells(masks: npt.NDArray[np.floating], grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """(B, H, W) -> (B, h, w): the mean of each place's pixels."""
    layers = torch.as_tensor(np.ascontiguousarray(masks), dtype=torch.float64)
    return functional.adaptive_avg_pool2d(layers.unsqueeze(1), grid).squeeze(1).numpy()


def _fresh(encoder: Encoder) -> int:
    """How many prompts a ViT gets anew before each block."""
    adapter = encoder.adapter
    return adapter.told.prompts if adapter is not None and adapter.told.deep else 0


def _places(stage: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, N, C) of `watch.last_stage`'s map: without class token and prompts."""
    if stage.ndim == 4:
        return stage.flatten(2).transpose(1, 2)
    return stage[:, 1 : 1 + grid[0] * grid[1]]


def _place_features(encoder: Encoder, told: Features) -> torch.Tensor:
    if isinstance(encoder.visual, TimmModel | MBANet):  # no way into the space of texts: as is
        return told.tokens
    return joint.joint_tokens(encoder.visual, told)[:, 1:]


def _as_maps(rows: torch.Tensor, grid: tuple[int, int]) -> Maps:
    maps: Maps = rows.reshape(len(rows), *grid).float().cpu().numpy()
    return maps
