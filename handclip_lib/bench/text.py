"""Rows on texts: what a causal tower need not read."""

import lightning_fabric as lf
import torch
from torch.nn import functional

from handclip_lib.bench.row import Row
from handclip_lib.device import make_fabric
from handclip_lib.models.clip import load_encoder
from handclip_lib.models.prompts import PromptLearner, Slots, find_slots
from handclip_lib.models.text import TextTower
from handclip_lib.schema import Params

TOWER, PROMPTS = "ViT-B-16", 64
_TEMPLATE, _WORDS = "a photo of a {person} dorsal right hand.", 4


def rows(p: Params) -> list[Row]:
    """What prompts cost, on the device of `p`, in float32; the weights are random."""
    fabric = make_fabric(p)
    encoder = load_encoder(TOWER, "random")
    fabric.to_device(encoder)
    tower = TextTower(encoder)
    cut = find_slots(tower, _TEMPLATE, _WORDS)
    padded = functional.pad(cut.tokens, (0, tower.context - len(cut.tokens)))
    whole = Slots(padded, cut.at, cut.end)
    start = 0.02 * torch.randn(PROMPTS, _WORDS, tower.width)
    short, long = (_learner(tower, slots, start, fabric) for slots in (cut, whole))
    assert torch.allclose(_texts(short), _texts(long), atol=1e-4), "cut texts are others"
    name = f"texts of {PROMPTS} prompts, cut after their end, against all {tower.context} tokens"
    return [Row(name, lambda: _texts(short), lambda: _texts(long), "≤ 0.20")]


def _learner(
    tower: TextTower, slots: Slots, start: torch.Tensor, fabric: lf.Fabric
) -> PromptLearner:
    learner = PromptLearner(tower, [slots], len(start), start)
    fabric.to_device(learner)
    return learner.eval()


@torch.inference_mode()
def _texts(learner: PromptLearner) -> torch.Tensor:
    found: torch.Tensor = learner()
    return found
