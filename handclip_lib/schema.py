"""The parameter tree: every field a run may be told, its type, its range and its default."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pandas as pd
from pandas.io.formats.style import Styler
from pydantic import BeforeValidator, Field, field_validator

from handclip_lib.aspects import ASPECTS
from handclip_lib.schema_base import Count, Model, Node, Text, Whole, did_you_mean, no_bool
from handclip_lib.schema_chain import Chain
from handclip_lib.schema_eval import Comparison
from handclip_lib.schema_train import Pretrain, Stage1, Stage2, Stage3a, Stage3b


class Drawn(Node):
    """The drawn-hands set, made at `data.root` when it is not there yet."""

    persons: Annotated[int, BeforeValidator(no_bool), Field(ge=2)] = 40
    seed: Whole = 0
    shots: tuple[Count, Count] = (8, 12)  # plain photographs an aspect, from and to (inclusive)
    layout: Literal["11k", "hd"] = "11k"  # hd: right backs, and extra persons as distractors
    laboratory: Literal["white_table", "other"] = "white_table"  # whose camera and light


class Data(Node):
    """Which photographs."""

    dataset: Literal["11k", "HD", "drawn", "own"] = "11k"
    root: Text = ""  # empty: data/11k, data/HD, data/drawn_…; own: a folder or a CSV
    drawn: Drawn = Drawn()


class Split(Node):
    """How the table becomes a manifest. `seed` is the data's own, apart from the run's."""

    mode: Literal["published", "person_disjoint"] = "published"
    seed: Whole = 0
    draws: Annotated[int, BeforeValidator(no_bool), Field(ge=1, le=100)] = 10
    select: Literal["persons", "none"] = "none"
    # What a class is where aspects are trained together: the person, a side's hand, or each view
    identity: Literal["person", "hand", "aspect_hand"] = "hand"
    legacy_tree: Text = ""  # a train_val_test_split_<aspect> folder to take as it is


class Comparator(Node):
    """MBA-Net, the CNN that variants of stage 2 with `tower: comparator` train."""

    backbone: str = "resnet50"  # torchvision's, or the image tower of an open_clip ResNet
    pretrained: Text = "imagenet"  # torchvision's; a file; random; of a tower: as in `model`
    image_size: Count = 324
    fit: Literal["squash", "pad", "hand"] = "squash"
    mirror_left: bool = False
    rpe: Literal["axial", "released", "none"] = "released"  # positions in spatial attention
    share_layer4: bool = True  # of the three branches


class Evaluation(Node):
    """How retrieval is scored: the same for every row of a table."""

    feature: tuple[Literal["penult", "pool", "proj"], ...] = ("pool", "proj")
    bootstrap: Annotated[int, BeforeValidator(no_bool), Field(ge=100)] = 2000
    batch_size: Count = 64

    @field_validator("feature")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name at least one of penult, pool, proj, each once")
        return value


class Baseline(Node):
    """Notebook 01: prompts of the zero-shot classifier, the tower beside, the projections."""

    templates: tuple[str, ...] = (
        "a photo of a {aspect} hand of a person.",
        "a {aspect} view of a human hand.",
        "a close-up photo of the {aspect} side of a hand.",
        "a scan of a {aspect} hand, plain background.",
        "a biometric image of a {aspect} hand.",
    )
    beside: Model | None = None
    projections: tuple[Literal["pca", "tsne", "umap"], ...] = ("pca", "tsne", "umap")

    @field_validator("templates")
    @classmethod
    def _has_slot(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or any(t.count("{") != 1 or "{aspect}" not in t for t in value):
            raise ValueError("every template needs the slot {aspect}, once and no other")
        return value


Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class Device(Node):
    """Where it runs. Figures must agree between machines: evaluation is in full precision."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    # GPUs, or processes on a CPU, that share the batches of one training of an image tower; what
    # learns from features alone (prompts of stage 3a) and all evaluation is on the first
    devices: Count = 1
    precision: Precision = "32-true"  # of features
    training: Precision = "32-true"
    compile: bool = False  # torch.compile of the image tower in training


class Params(Node):
    """The tree. Branches are stations of the kit; `reports` may move the run folders."""

    aspect: str = "dorsal_r"
    study: str = "demo"
    seed: Whole = 0
    tag: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.+=-]*)?$")] = ""
    experiment: Text = ""  # the user's own name of it, shown in reports
    reports: Text = ""  # empty: $HANDCLIP_REPORTS, else reports/ of the project
    data: Data = Data()
    split: Split = Split()
    model: Model = Model()
    comparator: Comparator = Comparator()
    evaluation: Evaluation = Evaluation()
    baseline: Baseline = Baseline()
    device: Device = Device()
    pretrain: Pretrain = Pretrain()
    stage1: Stage1 = Stage1()
    stage2: Stage2 = Stage2()
    stage3a: Stage3a = Stage3a()
    stage3b: Stage3b = Stage3b()
    chain: Chain = Chain()
    comparison: Comparison = Comparison()

    @field_validator("aspect")
    @classmethod
    def _known_aspect(cls, value: str) -> str:
        if value not in ASPECTS:
            raise ValueError(
                f"unknown aspect{did_you_mean(value, ASPECTS)}; one of {', '.join(ASPECTS)}"
            )
        return value

    def table(self) -> Styler:
        """What this run is told, whole: who it is, and every value that is not the default.

        A row a branch of the tree (`stage1`, `stage2.variants.ce`), of whose values only those that
        differ are named.
        """
        mine, usual = dict(leaves(self.model_dump())), dict(leaves(Params().model_dump()))
        parts: dict[str, list[str]] = {}
        for key, value in mine.items():
            part, _, name = key.rpartition(".")
            if key in ("aspect", "study", "seed") or value != usual.get(key):
                parts.setdefault(part or "this run", []).append(f"{name} {_told(value)}")
        rows = {part: [" · ".join(values)] for part, values in parts.items()}
        frame = pd.DataFrame.from_dict(
            rows, orient="index", columns=["where it differs from the defaults"]
        )
        look, wraps = "text-align: left; vertical-align: top", "white-space: normal"
        return frame.style.set_table_styles(
            [{"selector": "th, td", "props": look}, {"selector": "td", "props": wraps}]
        )


def _told(value: Any, between: str = ", ") -> str:
    """A value as a table shows it: of losses and models only what was said about them."""
    if isinstance(value, Mapping):
        said = {k: v for k, v in value.items() if v not in (None, "", (), {})}
        first = said.pop("type", "") or said.pop("name", "")
        more = ", ".join(f"{k} {_told(v, ' + ')}" for k, v in said.items())
        return f"{first} ({more})" if first and more else str(first) or more
    if isinstance(value, tuple | list):
        return between.join(_told(one) for one in value) or "–"
    return str(value) or "–"


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested mapping with its dotted path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
