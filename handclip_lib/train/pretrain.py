"""Pre-training on the training persons' photographs of all aspects, before stage 1."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from handclip_lib.schema import Params
from handclip_lib.schema_train import Pretrain
from handclip_lib.train.job import Trained


def pretrain_manifest(p: Params, table: pd.DataFrame) -> pd.DataFrame:
    """The photographs to learn from, of all aspects, in one manifest without query and gallery.

    split: `train`, `val` and `select` of whoever is tested in no aspect at all, whatever
    `p.split.mode` says, and these persons' photographs with accessories as `train`; who is held
    out in the study's own splits is `select`, without accessories. Raises SplitError with names,
    where a test person of any aspect would be shown; TooFew where nobody can be.
    """
    raise NotImplementedError


def pretrain(
    p: Params,
    name: str,
    settings: Pretrain,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
) -> Trained:
    """Train one of `pretrain_variants(p)` from the study's tower; leaves checkpoints/<name>.pth.

    manifest: of `pretrain_manifest`. What is kept is start + alpha · (end - start).
    facts: those of a stage, and `alpha`, `chosen_by` ("" or select_map), `held` ({alpha: mAP of
    held-out persons}, empty without), `labelled` (persons), `queue` (keys).
    """
    raise NotImplementedError


def pretrained_weights(p: Params, folders: Sequence[Path]) -> Path:
    """The weights that `p.stage1.pretrain` names, found in one of these run folders or made.

    folders: where notebook 08 of this study and seed may lie, the last one being where it would
    be made.
    """
    raise NotImplementedError
