"""By what a study's models were taught, in words."""

from handclip_lib.params import guided_variants, pretrain_variants, stage2_variants
from handclip_lib.schema import Params
from handclip_lib.schema_train import Pretrain, Stage3b, Training

STAGE1, CHAINED = "stage1", "chain"


def losses_of(p: Params, name: str) -> str:
    """By what losses a study trains the model of this name; a dash: none of its own."""
    if name == CHAINED:
        return f"chain of {p.chain.recipe}"
    stages: dict[str, Training] = {STAGE1: p.stage1, **pretrain_variants(p)}
    stages |= {**stage2_variants(p), **guided_variants(p)}
    if name not in stages:
        return "–"
    told = stages[name]
    if isinstance(told, Pretrain):
        return "contrast of views" + " and identities" * bool(told.labelled)
    words = [loss.type.replace("_", "-") for loss in told.losses]
    if isinstance(told, Stage3b) and told.text != "none":
        words.append(f"text ({told.text})")
    before = f"{p.stage1.pretrain}, then " if name == STAGE1 and p.stage1.pretrain else ""
    return before + " + ".join(words)
