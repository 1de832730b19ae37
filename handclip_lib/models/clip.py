"""CLIP towers behind one face: any open_clip model, its preprocessing, its features, its hash."""

import copy
import hashlib
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transform import PreprocessCfg
from torch import nn

from handclip_lib.data.preprocess import Preprocess
from handclip_lib.models import checkpoint, comparator, files, resize, towers, weights
from handclip_lib.models.adapters import Adapter
from handclip_lib.models.parts import part_widths
from handclip_lib.models.towers import Features
from handclip_lib.models.weights import Source, WeightsError
from handclip_lib.params import ParamError
from handclip_lib.schema import Comparator, Params
from handclip_lib.schema_base import Model


class Encoder(nn.Module):
    """An open_clip model with the preprocessing that belongs to it. Weights are float32.

    name: how it was asked for; tokenizer_name: by what open_clip finds its tokenizer; preprocess:
    from photograph to input; model_cfg: open_clip's description of the architecture, at the size
    it has now; adapter: what `models.adapters.adapt` put on the image tower, or None.
    """

    model: Any  # open_clip.CLIP; CustomTextCLIP or CoCa, with the same face; or MBA-Net, no text
    adapter: Adapter | None

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        source: Source,
        model_cfg: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.adapter = None
        self.name = source.name
        self.model_cfg = model_cfg
        self._widths = towers.widths(self.visual, preprocess.size)
        self.tokenizer_name = source.tokenizer
        self._tokenizer: Any = None

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        visual: nn.Module = self.model.visual
        return visual

    @property
    def dims(self) -> dict[str, int]:
        """Width of penult, pool and proj, and of further features that the tower has, by name."""
        if self.adapter is None:
            return dict(self._widths)
        return self._widths | part_widths(self.adapter.told, self._widths["pool"])

    @property
    def quick_gelu(self) -> bool:
        """Whether the towers use OpenAI's QuickGELU; weights belong to one or the other."""
        return bool(self.model_cfg.get("quick_gelu", False))

    @property
    def logit_scale(self) -> float:
        """The factor on cosines before a softmax over texts (about 100 for OpenAI's weights)."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def weights_sha256(self) -> str:
        """Hash of every tensor as it is now: it follows training, so caches can rely on it."""
        return sha256_of(self)

    def features(self, images: torch.Tensor, codes: torch.Tensor | None = None) -> Features:
        """images: float (B, 3, H, W), normalised by `preprocess`. One forward, raw features.

        codes: (B,) of `codes_of`; None: their views are unknown.
        Raises ValueError on images of another size than the tower takes, and on codes for a tower
        that asks for none.
        """
        if images.shape[1:] != (3, *self.preprocess.size):
            raise ValueError(
                f"images: expected (B, 3, {self.preprocess.size[0]}, {self.preprocess.size[1]}),"
                f" got {tuple(images.shape)}"
            )
        if codes is not None and (self.adapter is None or self.adapter.sie is None):
            raise ValueError("codes: this tower is told no views")
        if self.adapter is not None:
            return self.adapter.features(self.visual, images, codes)
        return towers.features(self.visual, images)

    def forward(self, images: torch.Tensor, codes: torch.Tensor | None = None) -> Features:
        """The same as `features`."""
        return self.features(images, codes)

    def codes_of(self, rows: pd.DataFrame) -> torch.Tensor | None:
        """(N,) int for `features`: the views of a table's photographs; None: it is told none.

        Raises ParamError on a missing column and on values that training had not.
        """
        return None if self.adapter is None else self.adapter.codes_of(rows)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, E) features of N texts in the space of `proj`, raw (not normalised)."""
        tokens = self.tokenizer(list(texts)).to(self.model.logit_scale.device)
        encoded: torch.Tensor = self.model.encode_text(tokens)
        return encoded

    @property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer of this model: list of texts -> int (N, context)."""
        if not self.tokenizer_name:
            raise WeightsError(f"{self.name} knows images alone, and no texts")
        if self._tokenizer is None:
            try:
                self._tokenizer = open_clip.get_tokenizer(self.tokenizer_name)
            except (ImportError, OSError) as error:
                raise WeightsError(
                    f"the tokenizer of {self.name} is not on this machine; image features work,"
                    f" texts do not: {error}"
                ) from error
        return self._tokenizer


def sha256_of(module: nn.Module) -> str:
    """Hash of every tensor of a module's state, with its name, type and shape."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def load_encoder(
    model: str,
    pretrained: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    fit: str | None = None,
    mirror_left: bool | None = None,
) -> Encoder:
    """An Encoder in eval mode on the CPU.

    model: any open_clip name, `tiny`, `tiny_rn`, `hf-hub:ORG/NAME`, an open_clip local-dir folder,
    or a weights file of ours, which says what it is; pretrained: a tag, a weights file, `random`
    (untrained weights), empty for what the model brings along, or None: that too, and random
    weights, with a warning, where a name brings none, as in open_clip; image_size: pixels or
    (height, width), None is the tower's own; fit and mirror_left: as in Preprocess, None is what
    the folder or file records, else `squash` and no; what differs from that is warned of.
    Raises WeightsError, FileNotFoundError or ConnectionError with what to do.
    """
    held = checkpoint.find_checkpoint(model, pretrained)
    source = checkpoint.source_of(held) if held else weights.find_source(model, pretrained)
    clip, adapter = checkpoint.rebuild(source, held) if held else (_build(source), None)
    native = resize.native_size(clip.visual)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size or native
    resize.set_image_size(clip.visual, size)
    cfg = copy.deepcopy(source.model_cfg)
    cfg["vision_cfg"]["image_size"] = size[0] if size[0] == size[1] else list(size)
    encoder = Encoder(clip.eval(), _preprocess(source, size, fit, mirror_left), source, cfg)
    encoder.adapter = adapter
    return encoder.eval()


def load_towers(p: Params) -> dict[str, Encoder]:
    """The tower of `p.model` and, where there is one, that of `p.baseline.beside`, by name.

    Raises ParamError when both have one name.
    """
    towers: dict[str, Encoder] = {}
    for told in (p.model, p.baseline.beside):
        if told is not None:
            name = Path(told.name).name  # a folder's own name, where the tower is one
            if name in towers:
                raise ParamError(f"baseline.beside: '{name}' is model.name already; set it to null")
            towers[name] = encoder_of(told)
    return towers


def encoder_of(told: Model) -> Encoder:
    """The encoder that a `model` branch describes."""
    return load_encoder(told.name, told.pretrained, told.image_size, told.fit, told.mirror_left)


def load_comparator(told: Comparator) -> Encoder:
    """MBA-Net as an encoder of images alone, in eval mode on the CPU.

    Its `pool` is the global branch, its `proj` the two with attention, so that [pool, proj] is the
    published feature. Raises WeightsError, FileNotFoundError or ConnectionError with what to do,
    ParamError on a backbone that is no ResNet.
    """
    if told.backbone == comparator.RESNET50:
        backbone, vision = comparator.resnet50(told.pretrained), {}
        usual: dict[str, Any] = comparator.USUAL
    else:
        tower = load_encoder(told.backbone, told.pretrained)
        if not isinstance(tower.visual, ModifiedResNet):
            raise ParamError(
                f"comparator.backbone: {told.backbone} is no ResNet of open_clip; take resnet50,"
                " RN50-quickgelu or tiny_rn"
            )
        backbone, vision = tower.visual, tower.model_cfg["vision_cfg"]
        usual = tower.preprocess.as_dict()
    size = (told.image_size, told.image_size)
    cfg = comparator.described(told, vision)
    pixels = Preprocess(
        size, told.fit, tuple(usual["mean"]), tuple(usual["std"]), usual["interpolation"],
        told.mirror_left,
    )  # fmt: skip
    model = comparator.build(cfg, backbone)
    return Encoder(model.eval(), pixels, Source("mba", "", "", cfg, None), cfg).eval()


def _build(source: Source) -> open_clip.CLIP:
    """The open_clip model at its own image size, where its tables need no guess of their grid."""
    if source.weights is None:
        clip = open_clip.create_model(source.build, load_weights=False, pretrained_text=False)
    elif source.build.startswith("local-dir:"):
        clip = open_clip.create_model(source.build, require_pretrained=True)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = files.plain(source.weights, Path(folder))
            files.check(path, source.build, source.model_cfg)
            try:
                clip = open_clip.create_model(
                    source.build, str(path), pretrained_text=False, require_pretrained=True
                )
            except RuntimeError as error:
                raise WeightsError(
                    f"{source.weights} is not of a {source.build}: {error}"
                ) from error
    return clip.float()


def _preprocess(
    source: Source, size: tuple[int, int], fit: str | None, mirror_left: bool | None
) -> Preprocess:
    """Mean, std and filter are the weights' own; cropping, open_clip's default, never happens."""
    usual = PreprocessCfg()
    told = source.preprocess
    for key, asked in (("fit", fit), ("mirror_left", mirror_left)):
        if asked is not None and told.get(key) not in (None, asked):
            warnings.warn(
                f"{source.name} was trained with {key} '{told[key]}' and is used with '{asked}'",
                stacklevel=3,
            )
    interpolation = told.get("interpolation") or usual.interpolation
    return Preprocess(
        size=size,
        fit=fit or told.get("fit") or "squash",
        mean=tuple(told.get("mean") or usual.mean),
        std=tuple(told.get("std") or usual.std),
        interpolation=interpolation,
        mirror_left=bool(told.get("mirror_left") if mirror_left is None else mirror_left),
    )
