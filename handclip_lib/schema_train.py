"""How an encoder is trained: what the stages share, and where their defaults differ."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from handclip_lib.schema_base import Amount, Count, Node, Rate, Share, Text, Whole, no_bool


class LossSpec(Node):
    """One loss by name; keys beside these belong to the loss and are checked where it is built."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    type: str
    weight: Amount | None = None  # None: the usual one of its type
    on: tuple[str, ...] | None = None  # features; None: those of its type


class Sampler(Node):
    """Which images make a batch."""

    type: Literal["shuffle", "identity", "pk", "two_level", "hard"] = "shuffle"
    images: Count = 4  # of an identity in a batch: the K of PK (not for shuffle)
    refresh: Count = 5  # hard: epochs between two looks at which identities lie near each other
    random: Share = 0.5  # hard: share of batches that stay plain PK


class Augment(Node):
    """Random changes of training images, drawn for each image by itself, on the device."""

    degrees: Annotated[float, BeforeValidator(no_bool), Field(ge=0, le=180)] = 15.0
    translate: Share = 0.05  # of the side
    scale: tuple[Rate, Rate] = (0.9, 1.1)
    crop: Annotated[float, BeforeValidator(no_bool), Field(ge=0, lt=1)] = 0.0  # most of a side cut
    colour: Share = 0.1  # brightness, contrast, saturation
    hue: Annotated[float, BeforeValidator(no_bool), Field(ge=0, le=0.5)] = 0.0  # of its circle
    grey: Share = 0.0  # probability of an image without colours
    blur: Share = 0.0  # probability of a Gaussian blur
    erasing: Share = 0.5  # probability of a box of noise
    flip: bool = False  # turns a right hand into a left one
    mixup: Amount = 0.0  # alpha of the Beta distribution; 0 is off
    cutmix: Amount = 0.0
    mix: Share = 0.5  # probability that a batch is mixed, where mixup or cutmix is on

    @model_validator(mode="after")
    def _ordered(self) -> "Augment":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: from {self.scale[0]} to {self.scale[1]} is no range")
        return self


class Gradual(Node):
    """Gradual unfreezing (ULMFiT, Howard & Ruder 2018): the last groups first."""

    start: Count = 1  # groups that are open at first
    every: Count = 5  # epochs until the next deeper one opens


class Loop(Node):
    """What every training is told; lr is that of the tower's last layers, where it learns."""

    epochs: Count = 60
    batch_size: Annotated[int, BeforeValidator(no_bool), Field(ge=2)] = 64
    lr: Rate = 1e-5
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: Amount = 0.05  # not on one-dimensional parameters and tables
    schedule: Literal["cosine", "one_cycle", "multistep", "constant"] = "cosine"
    warmup: Share = 0.1  # of all steps, linear
    milestones: tuple[Share, ...] = (0.5, 0.83)  # of all steps (multistep)
    gamma: Annotated[float, BeforeValidator(no_bool), Field(gt=0, le=1)] = 0.1  # at a milestone
    min_lr: Amount = 1e-7  # where cosine and one_cycle end
    accumulate: Count = 1  # batches an optimiser step
    clip_norm: Amount = 1.0  # of the gradient; 0 is off
    ema: Annotated[float, BeforeValidator(no_bool), Field(ge=0, lt=1)] = 0.0  # decay; 0 is off
    patience: Whole = 0  # validations without improvement before training ends; 0 is off
    validate_every: Count = 1  # epochs
    sampler: Sampler = Sampler()
    save_seconds: Amount = 60.0  # between two files that a killed run goes on from

    @model_validator(mode="after")
    def _rising(self) -> "Loop":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: {self.milestones} do not rise")
        return self


class Training(Loop):
    """What a training of the image tower is told besides."""

    head_lr: Rate = 10.0  # times lr, for necks, classifiers, heads and proxies
    layer_decay: Annotated[float, BeforeValidator(no_bool), Field(gt=0, le=1)] = 0.75
    head_epochs: Whole = 0  # at first only heads learn (LP-FT, Kumar et al. 2022)
    unfreeze_blocks: Whole | None = None  # of the image tower, from its end; None: all of it
    gradual: Gradual | None = None
    freeze_bn: bool = False  # the tower's BatchNorms keep their statistics
    losses: tuple[LossSpec, ...] = (LossSpec(type="cross_entropy"),)
    loss_balance: Literal["fixed", "uncertainty", "ema"] = "fixed"
    projection: Whole = 0  # width of an auxiliary head on proj, for losses on `head`; 0: none
    augment: Augment = Augment()

    @model_validator(mode="after")
    def _one_way_to_open(self) -> "Training":
        if self.gradual and self.unfreeze_blocks is not None:
            raise ValueError("gradual and unfreeze_blocks exclude each other: set one to null")
        return self


class Stage1(Training):
    """Identity cross-entropy with frozen text."""

    head_epochs: Whole = 5
    # Whose weights it starts from, of `pretrain`; empty: the study's tower, as a chain always does
    pretrain: Text = ""


class Pretrain(Training):
    """Contrastive pre-training: two views of an image agree, and so may images of an identity."""

    epochs: Count = 30
    batch_size: Annotated[int, BeforeValidator(no_bool), Field(ge=2)] = 256
    weight_decay: Amount = 0.1
    patience: Whole = 5
    freeze_bn: bool = True
    losses: tuple[LossSpec, ...] = ()
    projection: Count = 256  # width of the space in which views are compared
    # MoCo's 0.4 of colour and crops of any size take fair hands, and fingers, out of a picture
    augment: Augment = Augment(crop=0.3, colour=0.2, hue=0.02, grey=0.2, blur=0.5, erasing=0.0)
    freeze_stem: bool = True  # the patch projection, or first convolution
    # Where keys come from: a copy of the tower that follows it, or the tower itself, with gradient
    keys: Literal["momentum", "tower"] = "momentum"
    momentum: tuple[Share, Share] = (0.99, 1.0)  # of the copy, from and to, by cosine
    queue: Whole = 0  # earlier keys, a quarter of the images at most; 0: those of the batch alone
    projector: Literal["norm", "plain"] = "norm"  # three layers with BatchNorm, or two without
    hidden: Count = 2048  # width of the projector's, and the predictor's, hidden layers
    predictor: bool = True  # two layers behind the projector, on the queries' side
    temperature: Rate = 0.2
    labelled: Share = 0.0  # of the persons, whose images of an identity are positives
    # Kept is start + alpha · (end - start), with what held-out training persons prefer of these;
    # where nobody is held out with 0.5, or with the one that is named alone
    wise_ft: tuple[Share, ...] = (0, 0.2, 0.4, 0.6, 0.8, 1)
    # By name: files of params/pretrain/, or what differs from these settings, written here
    variants: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _contrastive(self) -> "Pretrain":
        alone, mixed = self.keys == "tower", self.augment.mixup or self.augment.cutmix
        clashes = {
            "losses: pre-training has its own, of views; leave them empty": self.losses,
            "loss_balance: there is one loss; fixed": self.loss_balance != "fixed",
            "accumulate: enlarges no batch whose images are compared; 1": self.accumulate > 1,
            "ema: its weights are interpolated instead (wise_ft); 0": self.ema,
            "augment: a mixed image is no view of an image; mixup and cutmix 0": mixed,
            "keys: queue and predictor need those of a momentum tower": alone
            and (self.queue or self.predictor),
            "sampler: by identity, not hard, and only with labelled: 1": self.sampler.type == "hard"
            or (self.sampler.type != "shuffle" and self.labelled < 1),
            f"wise_ft: {self.wise_ft} do not rise": not self.wise_ft
            or list(self.wise_ft) != sorted(set(self.wise_ft)),
        }
        found = [words for words, clash in clashes.items() if clash]
        if found:
            raise ValueError(found[0])
        return self


def _listed(value: object) -> object:
    """A list of losses alone is a variant that differs in them."""
    return {"losses": value} if isinstance(value, list | tuple) else value


class Stage2(Training):
    """Metric losses on stage-1 weights, by variants that differ in their losses, or in more."""

    epochs: Count = 40
    lr: Rate = 5e-6
    sampler: Sampler = Sampler(type="pk")
    losses: tuple[LossSpec, ...] = (LossSpec(type="cross_entropy"), LossSpec(type="triplet"))
    variant: Literal["finetuned", "baseline"] = "finetuned"  # baseline: evaluate, train nothing
    resume_from: Text = ""  # a weights file; empty: stage 1 of the study, made when missing
    # comparator: MBA-Net of `comparator`, from its own weights in place of those of stage 1
    tower: Literal["study", "comparator"] = "study"
    # By name: files of params/losses/, or lists of losses, or what differs from these settings,
    # written here; none: `losses` alone
    variants: dict[str, Annotated[dict[str, Any], BeforeValidator(_listed)]] = {}
    save_dir: Text = ""  # where the weights go, too


class Adapt(Node):
    """What is put on an image tower, frozen or training.

    Side information, LoRA and attention change nothing at the start; prompts and overlapping
    patches do; parts leave the tower alone and join its `pool`.
    """

    view: Literal["none", "aspect", "camera"] = "none"  # side information (SIE), by this column
    view_scale: Amount = 1.0
    prompts: Whole = 0  # visual prompt tokens (VPT); 0: none
    deep: bool = True  # prompts before every block, not the first alone
    prompt_dropout: Annotated[float, BeforeValidator(no_bool), Field(ge=0, lt=1)] = 0.0
    lora: Whole = 0  # rank of LoRA on attention and MLP; 0: none
    stride: Count | None = None  # of the patches; less than their size: they overlap (OLP)
    attention: Literal["none", "channel", "spatial", "self"] = "none"  # before the last stage
    parts: Literal["none", "pcb", "mgn", "jpm"] = "none"
    part_grid: tuple[Count, Count] = (3, 1)  # pcb: rows and columns of the map
    part_scale: Amount | None = None  # of each part in `pool`; None: as its paper tests it


class Stage3a(Loop):
    """Learned prompts: both towers frozen, the image features computed once."""

    epochs: Count = 120
    lr: Rate = 3.5e-4
    optimizer: Literal["adamw", "adam"] = "adam"
    weight_decay: Amount = 1e-4
    warmup: Share = 0.04
    min_lr: Amount = 1e-6
    start: Literal["pretrained", "stage1"] = "pretrained"  # of all of stage 3, 3b included
    n_ctx: Count = 4
    template: str = "a photo of a {person} {aspect} hand."
    words: tuple[str, ...] = ("person",)  # of init words
    init: Literal["random", "words", "attributes", "image"] = "random"
    prompts: Count = 1  # an identity has; their features are averaged
    diversity: Amount = 0.1  # weight of the likeness of an identity's prompts
    dropout: Annotated[float, BeforeValidator(no_bool), Field(ge=0, lt=1)] = 0.0
    similarity: Literal["cosine", "dot"] = "cosine"


class Stage3b(Training):
    """The image tower against texts: learned prompts, an image's pseudo-word, or descriptions."""

    lr: Rate = 5e-6
    optimizer: Literal["adamw", "adam"] = "adam"
    weight_decay: Amount = 1e-4
    schedule: Literal["cosine", "one_cycle", "multistep", "constant"] = "multistep"
    warmup: Share = 0.17
    layer_decay: Annotated[float, BeforeValidator(no_bool), Field(gt=0, le=1)] = 1.0
    sampler: Sampler = Sampler(type="pk")
    losses: tuple[LossSpec, ...] = (
        LossSpec(type="cross_entropy", weight=0.25),
        LossSpec(type="triplet"),
    )
    text: Literal["none", "prompts", "pseudo", "attributes", "number"] = "prompts"
    template: str = "a photo of a {person} {aspect} hand."  # pseudo, attributes, number
    i2t: Amount = 1.0
    t2i: Amount = 0.0
    text_smoothing: Share = 0.1  # of i2t over all identities' prompts
    similarity: Literal["cosine", "dot"] = "cosine"
    style: Literal["promptsg", "clip_handid"] = "promptsg"  # of the inversion network
    interact: bool = False  # pseudo: the text looks at the patches
    adapt: Adapt = Adapt()
    # By name: files of params/guided/, or what differs from these settings, written here
    variants: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _can_teach(self) -> "Stage3b":
        silent = not (self.i2t or self.t2i)
        if self.text == "none" and not self.losses:
            raise ValueError("text none and no losses: nothing would be learnt")
        if self.text != "none" and silent and not (self.interact and self.losses):
            raise ValueError("i2t and t2i are both 0; without texts it is text: none")
        if self.interact and self.text != "pseudo":
            raise ValueError("interact is for text: pseudo, where each image has a text")
        if self.text not in ("none", "prompts") and "{person}" not in self.template:
            raise ValueError(f"template '{self.template}' has no {{person}}")
        return self
