"""What is trained in `tiny.py`: the two tiny towers, their losses, and the augmentation."""

from typing import Any

import lightning_fabric as lf
import numpy as np
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional

from handclip_lib.data.preprocess import Preprocess
from handclip_lib.device import make_fabric
from handclip_lib.models.clip import Encoder
from handclip_lib.models.weights import Source
from handclip_lib.schema import Params
from handclip_lib.train.captions import CLASSES, UNSEEN

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKENIZER = "ViT-B-32"  # any open_clip model with CLIP's own vocabulary
NAMES = {"vit": "tiny", "rn": "tiny_rn"}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 112, "patch_size": 14, "width": 192, "head_width": 64, "layers": 6},
    "rn": {"image_size": 128, "width": 16, "head_width": 32, "layers": [1, 2, 2, 1]},
}


def fast_fabric() -> lf.Fabric:
    """bfloat16 where the machine has it in hardware, float32 elsewhere."""
    fast = torch.cuda.is_available() or torch.cpu.get_capabilities().get("avx512_bf16", False)
    precision = "bf16-mixed" if fast else "32-true"
    return make_fabric(Params.model_validate({"device": {"precision": precision}}))


class Pretraining(nn.Module):
    """A tiny CLIP and the heads that are thrown away: attributes, aspect, side of the thumb."""

    def __init__(self, tower: str) -> None:
        super().__init__()
        config = model_config(tower)
        self.clip = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
        sizes = {"aspect": 4, "thumb": 2} | {name: len(values) for name, values in CLASSES.items()}
        self.heads = nn.ModuleDict({k: nn.Linear(config["embed_dim"], n) for k, n in sizes.items()})


def model_config(tower: str) -> dict[str, Any]:
    """open_clip's description of a tower, `vit` or `rn`."""
    return {"embed_dim": 128, "vision_cfg": dict(VISION[tower]), "text_cfg": dict(TEXT)}


def as_encoder(clip: CLIP, tower: str) -> Encoder:
    """The kit's encoder around these very weights, to be evaluated or saved."""
    size = VISION[tower]["image_size"]
    config = model_config(tower)
    source = Source(NAMES[tower], "", TOKENIZER, config, None)
    return Encoder(clip, Preprocess((size, size), "hand", MEAN, STD), source, config).eval()


def encode_short(clip: CLIP, tokens: Tensor) -> Tensor:
    """(B, E) text embeddings with the padding cut off: exact, as attention looks back only."""
    length = int((tokens != 0).sum(dim=1).max())
    x = clip.token_embedding(tokens[:, :length]) + clip.positional_embedding[:length]
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
    last = x[torch.arange(len(x)), tokens[:, :length].argmax(dim=1)]  # the end token's row
    return last @ clip.text_projection


def contrastive(images: Tensor, texts: Tensor, fits: Tensor, scale: Tensor) -> Tensor:
    """Two-way cross-entropy where a caption's pictures are all those that it is true of.

    images, texts: (B, E) raw; fits: (B, B) bool, picture i fits caption j; every row and column
    has one. Targets are uniform over the fitting ones: the outer sum of SupCon, Khosla et al.
    2020, arXiv:2004.11362, eq. 2, between two modalities.
    """
    z, t = functional.normalize(images, dim=1), functional.normalize(texts, dim=1)
    logits, target = scale * z @ t.T, fits.to(images.dtype)  # (B, B)
    rows = -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    columns = -(target / target.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (rows + columns) / 2


def attribute_loss(model: Pretraining, images: Tensor, codes: Tensor) -> Tensor:
    """Summed cross-entropy of the heads on raw embeddings (B, E); codes (B, 7), less UNSEEN."""
    targets = dict(zip(CLASSES, codes.T, strict=True))
    targets["aspect"] = 2 * targets["surface"] + targets["side"]
    targets["thumb"] = targets["surface"] ^ targets["side"]  # where it points in the picture
    terms = [
        functional.cross_entropy(head(images), targets[name], ignore_index=UNSEEN)
        for name, head in model.heads.items()
    ]
    return torch.stack(terms).nansum()  # a batch of palms shows no nails: nan


def augment(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """uint8 (B, H, W, 3) -> normalised float (B, 3, size, size), turned, cropped, re-coloured.

    No mirror images: a mirrored right hand is a left one. ±20°, zoom 0.85-1.17, shift 6 %,
    brightness and contrast ±20 %, colour balance ±4 %.
    """
    count, device = len(pixels), pixels.device

    def draw(*shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1).to(device)

    angle = draw() * np.radians(20)
    zoom = torch.exp(draw(1, 1) * 0.16) * torch.exp(draw(1, 2) * 0.04)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    theta = torch.cat([turn * zoom, draw(2, 1) * 0.12], dim=2)  # (B, 2, 3)
    colour = 1 + draw(3, 1, 1) * 0.04 + draw(1, 1, 1) * 0.2
    contrast = 1 + draw(1, 1, 1) * 0.2
    x = pixels.permute(0, 3, 1, 2).float() / 255
    grid = functional.affine_grid(theta, [count, 3, size, size], align_corners=False)
    x = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    middle = x.mean(dim=(2, 3), keepdim=True)
    return normalise((((x - middle) * contrast + middle) * colour).clamp(0, 1))


def shrink(pixels: Tensor, size: int) -> Tensor:
    """uint8 (B, H, W, 3) -> normalised float (B, 3, size, size), as it is."""
    x = pixels.permute(0, 3, 1, 2).float() / 255
    return normalise(functional.interpolate(x, size=(size, size), mode="bicubic", antialias=True))


def normalise(images: Tensor) -> Tensor:
    """Float (B, 3, H, W) in 0..1 -> with CLIP's mean and std."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)
