"""HandCLIP: identify persons from photographs of hands by fine-tuning CLIP's image encoder."""

import sys

import torch

__version__ = "0.1.0"


def _import_torchvision() -> "torch.library.Library | None":
    """Import torchvision beside a CPU-only torch, whose wheel lacks two operators it looks for.

    PyPI's torchvision is linked against CUDA; with a CPU build of torch its first import fails
    (pytorch/vision#9085), and open_clip's and timm's with it. Declaring the operators' schemas
    and importing again gives everything but `torchvision.ops.nms` and `torchvision.io`. Matching
    wheels never get past the first line. The library object must be kept alive.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401

        return library
    return None


_TORCHVISION_OPERATORS = _import_torchvision()
