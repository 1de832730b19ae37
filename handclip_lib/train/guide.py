"""What texts say about a batch of images: further losses, and features that a text helped to make.

The texts are fixed rows (learned prompts, descriptions), or each image's own pseudo-word.
"""

from collections.abc import Mapping, Sequence

import lightning_fabric as lf
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from handclip_lib.data.store import Store
from handclip_lib.evaluate.embed import evaluating
from handclip_lib.losses.crossmodal import cross_modal
from handclip_lib.models.clip import Encoder
from handclip_lib.models.promptsg import Composer
from handclip_lib.models.towers import Features
from handclip_lib.schema_train import Stage3b

FUSED = "fused"


class Guide(nn.Module):
    """Losses between images and texts, by `settings`, with a logit scale that stays as it is.

    bank: (U, E) unit text features, with owner (C,): which of them is a class's text; or composer,
    which makes a text of each image. dims: width of each feature that it adds.
    """

    bank: torch.Tensor
    owner: torch.Tensor

    def __init__(
        self,
        settings: Stage3b,
        scale: float,
        bank: torch.Tensor | None = None,
        owner: torch.Tensor | None = None,
        composer: Composer | None = None,
    ) -> None:
        super().__init__()
        if (bank is None or owner is None) == (composer is None):
            raise ValueError("a guide has either a bank of texts with its owners, or a composer")
        self.settings, self.scale, self.composer = settings, scale, composer
        self.register_buffer("bank", bank)
        self.register_buffer("owner", owner)
        weights = {"i2t": settings.i2t, "t2i": settings.t2i}
        self.weights = {name: weight for name, weight in weights.items() if weight}

    def forward(
        self, features: Features, labels: torch.Tensor, clean: int | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """({further feature: (B, E)}, {loss: unweighted scalar}) of a batch with labels (B,).

        i2t compares each image with all texts of the bank, else with those of the batch; t2i each
        text with the images of the batch; clean: the first so many rows are not mixed, and only
        these have an identity. Smoothing is of i2t over a bank.
        """
        more, text = self._texts(features)
        y = labels[:clean]
        image = features.proj[:clean]
        if text is None:
            text, y_text, y = (
                self.bank,
                torch.arange(len(self.bank), device=y.device),
                self.owner[y],
            )
            smoothing = self.settings.text_smoothing
        else:
            text, y_text, smoothing = text[:clean], y, 0.0
        likeness = self.settings.similarity
        terms = {}
        if "i2t" in self.weights:
            terms["i2t"] = cross_modal(image, text, y, y_text, self.scale, smoothing, likeness)
        if "t2i" in self.weights:
            terms["t2i"] = cross_modal(text, image, y_text, y, self.scale, 0.0, likeness)
        return more, terms

    def more(self, features: Features) -> dict[str, torch.Tensor]:
        """The further features alone: (B, E) by name."""
        return self._texts(features)[0] if self.composes else {}

    def _texts(self, features: Features) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        if self.composer is None:
            return {}, None
        text, fused = self.composer(features)
        return ({} if fused is None else {FUSED: fused}), text

    def dims(self, width: int) -> dict[str, int]:
        """Width of each further feature in a joint space of this width."""
        return {FUSED: width} if self.composes else {}

    @property
    def composes(self) -> bool:
        """Whether it adds a feature that an image's text helped to make."""
        return self.composer is not None and self.composer.interaction is not None


def bank_of(
    encoder: Encoder, texts: Sequence[str], unit: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """((U, E) features of the distinct texts, (C,) which of them each text is).

    unit: rows of length 1. Raises ValueError where all texts are the same: nothing could be learnt
    from them.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2:
        raise ValueError(
            f"all {len(texts)} identities have one text, '{distinct[0]}': nothing can be learnt"
            " from it; take persons who differ in it, or text: prompts"
        )
    with torch.no_grad():
        z = encoder.encode_text(distinct).float()
    z = functional.normalize(z, dim=1) if unit else z
    return z.cpu(), torch.tensor([distinct.index(text) for text in texts])


def check_guide(guide: Guide, dims: Mapping[str, int], num_ids: int) -> None:
    """Every loss between images and texts must pull at the image, and at what makes its text.

    Tried on random features. Raises RuntimeError that names the loss which does not.
    """
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(min(num_ids, 4)).repeat_interleave(2)
    rows = len(labels)
    made = {n: torch.randn(rows, w, generator=rng) for n, w in dims.items() if n != FUSED}
    tokens = torch.randn(rows, 4, dims.get("whole", dims["pool"]), generator=rng)
    made["proj"].requires_grad_()
    told = Features(made["penult"], made["pool"], made["proj"], tokens, (2, 2))
    modes = [(part, part.training) for part in guide.modules()]
    state = {name: value.clone() for name, value in guide.state_dict().items()}
    _, terms = guide.train()(told, labels)
    learns = [w for w in guide.parameters() if w.requires_grad]
    for name, term in terms.items():
        if not term.requires_grad:
            raise RuntimeError(f"loss {name} gives no gradient to proj")
        grads = torch.autograd.grad(
            term, [made["proj"], *learns], retain_graph=True, allow_unused=True
        )
        if grads[0] is None or not grads[0].abs().sum() > 0:
            raise RuntimeError(f"loss {name} gives no gradient to proj")
        if learns and not any(g is not None and g.abs().sum() > 0 for g in grads[1:]):
            raise RuntimeError(f"loss {name} gives no gradient to what makes the texts")
    guide.load_state_dict(state)  # statistics of BatchNorms have moved
    for part, training in modes:
        part.training = training


@torch.inference_mode()
def composed(
    encoder: Encoder,
    guide: Guide,
    store: Store,
    images: Sequence[str],
    fabric: lf.Fabric,
    size: int = 64,
    own: bool = True,
) -> np.ndarray:
    """(N, E) unit features of images, each fused with a text by the interaction.

    own: with the image's own composed text, else with one fixed text for all (PromptSG's two ways
    of inference). No label is asked for, and no other image matters. Raises ValueError on a guide
    that makes none.
    """
    if guide.composer is None or not guide.composes:
        raise ValueError("this guide composes no feature: set interact")
    fabric.to_device(encoder)
    fabric.to_device(guide)
    parts = []
    with evaluating(encoder), evaluating(guide):
        for start in range(0, len(images), size):
            names = list(images[start : start + size])
            pixels = store.pixels(names).to(fabric.device)
            codes = encoder.codes_of(store.table.iloc[store.rows(names)])
            codes = None if codes is None else codes.to(fabric.device)
            with fabric.autocast():
                pixels = encoder.preprocess.normalise(pixels)
                told = encoder.features(pixels, codes)
                _, fused = guide.composer(told, composed=own)
            parts.append(functional.normalize(fused.float(), dim=1).cpu().numpy())
    return np.concatenate(parts)
