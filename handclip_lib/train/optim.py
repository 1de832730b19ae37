"""What trains, how fast, from when: parameter groups by depth, schedules, layers that open."""

import re
from collections import Counter
from typing import Any

import pandas as pd
import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import lr_scheduler

from handclip_lib.models.adapters import adapter_parameters, copies_of
from handclip_lib.models.clip import Encoder
from handclip_lib.models.lora import is_lora
from handclip_lib.schema_train import Loop, Training
from handclip_lib.train.ladder import ladder_of

HEADS = "heads"
ADAPTER = "adapter"
BALANCE = "balance"
_BALANCE_LR = 0.01  # whatever the tower's: learnt weights of losses are numbers around 0
_TABLES = re.compile(
    r"positional_embedding|pos_embed|relative_position|class_embedding|_token$|\bcenters$"
)
_START = 0.01  # of the rate, where the warm-up begins (CLIP-ReID's ViT recipe)


def param_groups(encoder: Encoder, heads: nn.Module, settings: Training) -> list[dict[str, Any]]:
    """Every parameter that may train under `settings`, each once, for a torch optimiser.

    The image tower by depth and weight decay, what an adapter brought, then `heads` (necks,
    classifiers, proxies). A group has `params`, `lr`, `weight_decay`, `name`. lr = settings.lr ·
    layer_decay^(top - depth), · head_lr for a step that is new; adapter and heads: settings.lr ·
    head_lr; learnt weights of losses: 0.01 at the peak. No decay for one-dimensional parameters,
    tables of positions, tokens or centres, and adapters. Depths: `ladder.ladder_of`. The text tower
    and logit_scale are in no group. Layer-wise decay: BEiT, Bao et al. 2022, arXiv:2106.08254;
    timm's own grouping knows no open_clip tower.
    """
    rows = [row for row in _rows(encoder, heads, settings) if row.pop("open_from") is not None]
    return [row for row in rows if row["params"]]


def opened(encoder: Encoder, heads: nn.Module, settings: Training, epochs: int) -> int:
    """How many numbers train within so many epochs: heads, adapter, the tower's open part."""
    rows = [r for r in _rows(encoder, heads, settings) if 0 < (r["open_from"] or 0) <= epochs]
    return sum(parameter.numel() for row in rows for parameter in row["params"])


def make_optimizer(encoder: Encoder, heads: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """AdamW, or Adam with L2, on `param_groups`."""
    groups = param_groups(encoder, heads, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    return torch.optim.Adam(groups, lr=settings.lr)


def trainable_table(encoder: Encoder, heads: nn.Module, settings: Training) -> pd.DataFrame:
    """One row a group: `group`, `parameters`, `lr`, `weight_decay`, `open_from` (epoch, 1-based).

    What never trains has no lr, and open_from 0; the text tower is the last row.
    """
    rows = []
    for row in _rows(encoder, heads, settings):
        opens = row["open_from"]
        count = sum(parameter.numel() for parameter in row["params"])
        lr, decay = (row["lr"], row["weight_decay"]) if opens else (None, None)
        rows.append((row["name"], count, lr, decay, opens or 0))
    own = {id(parameter) for parameter in encoder.visual.parameters()}
    text = sum(p.numel() for p in encoder.model.parameters() if id(p) not in own)
    rows.append(("text tower", text, None, None, 0))
    columns = ["group", "parameters", "lr", "weight_decay", "open_from"]
    return pd.DataFrame(rows, columns=columns).astype({"lr": float, "weight_decay": float})


def open_layers(encoder: Encoder, settings: Training, epoch: int) -> list[str]:
    """Open what trains in `epoch` (1-based), close the rest; the names of the tower's open steps.

    In the first `head_epochs` the tower is closed (LP-FT, Kumar et al. 2022, arXiv:2202.10054);
    then all of it, or the last `unfreeze_blocks` blocks with what follows them, or, `gradual`, one
    step more every few epochs from its end (ULMFiT, Howard & Ruder 2018, arXiv:1801.06146).
    An adapter is open always, but its copies of the last stage, which open with that. BatchNorms of
    closed steps, or all with `freeze_bn`, are put in eval
    mode and keep their running statistics: call it after every `train()`.
    """
    ladder = ladder_of(encoder.visual)
    opens = [_opens(settings, depth, ladder.top) for depth in range(ladder.top + 1)]
    is_open = [start is not None and start <= epoch for start in opens]
    encoder.requires_grad_(False)
    for name, parameter in encoder.visual.named_parameters():
        parameter.requires_grad_(is_open[ladder.depth[name]])
    for parameter in adapter_parameters(encoder):
        parameter.requires_grad_(True)
    copies, last = copies_of(encoder), is_open[ladder.top - 1]
    copies.requires_grad_(last)
    for module in copies.modules():
        if isinstance(module, _BatchNorm):
            module.train(module.training and last and not settings.freeze_bn)
    for name, module in encoder.visual.named_modules():
        if isinstance(module, _BatchNorm):
            depth = ladder.depth.get(f"{name}.weight", 0)  # without weights: as the stem
            module.train(module.training and is_open[depth] and not settings.freeze_bn)
    return [step for step, there in zip(ladder.steps, is_open, strict=True) if there]


def check_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every parameter of `module` that asks for a gradient is in the optimiser, once.

    Raises AssertionError with the names of those that are not, or that are there twice.
    """
    held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    asking = {name: id(p) for name, p in module.named_parameters() if p.requires_grad}
    missing = [name for name, key in asking.items() if not held[key]]
    twice = [name for name, key in asking.items() if held[key] > 1]
    if missing:
        raise AssertionError(f"trainable, but not in the optimiser: {', '.join(missing)}")
    if twice:
        raise AssertionError(f"in the optimiser more than once: {', '.join(twice)}")


class Schedule:
    """The learning rate of every group as a function of the optimiser step alone.

    One curve, computed beforehand by timm's or torch's scheduler for a group of rate settings.lr:
    each group follows it at the ratio it had when the schedule was made. Warm-up is linear from
    one hundredth (one_cycle: one 25th, Smith & Topin 2018, arXiv:1708.07120, then linearly down).
    cosine and one_cycle end at min_lr; multistep multiplies by gamma at each milestone.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: Loop, steps: int) -> None:
        self.optimizer, self.steps = optimizer, steps
        self.curve = _curve(settings, steps)  # of a group whose rate is settings.lr
        self.ratios = [group["lr"] / settings.lr for group in optimizer.param_groups]

    def set(self, step: int) -> float:
        """Set every group's rate for `step` (0-based; the last one's afterwards).

        Returns the rate of the tower's last layers.
        """
        lr = self.curve[min(step, self.steps - 1)]
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            group["lr"] = lr * ratio
        return lr


def _curve(settings: Loop, steps: int) -> list[float]:
    """Learning rate of each of `steps` steps, by the libraries' schedulers."""
    told = torch.optim.SGD([torch.zeros(1)], lr=settings.lr)
    lr, floor = settings.lr, min(settings.min_lr, settings.lr)
    warmup = round(settings.warmup * steps)
    if settings.schedule == "one_cycle":
        return _one_cycle(told, settings, steps, floor)
    first: dict[str, Any] = {
        "warmup_t": warmup,
        "warmup_lr_init": lr * _START,
        "t_in_epochs": False,
    }
    scheduler: CosineLRScheduler | MultiStepLRScheduler
    if settings.schedule == "cosine":
        length = max(steps - warmup, 1)
        scheduler = CosineLRScheduler(told, length, lr_min=floor, warmup_prefix=True, **first)
    else:
        shares = settings.milestones if settings.schedule == "multistep" else ()
        at = [round(share * steps) + 1 for share in shares]  # timm's count begins at 1
        scheduler = MultiStepLRScheduler(told, at, settings.gamma, warmup_prefix=False, **first)
    curve = []
    for step in range(steps):
        scheduler.step_update(step)
        curve.append(float(told.param_groups[0]["lr"]))
    return curve


def _one_cycle(
    told: torch.optim.Optimizer, settings: Loop, steps: int, floor: float
) -> list[float]:
    start = 25.0
    scheduler = lr_scheduler.OneCycleLR(
        told,
        max_lr=settings.lr,
        total_steps=max(steps, 2),
        pct_start=settings.warmup,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=start,
        final_div_factor=settings.lr / start / max(floor, 1e-12),
    )
    curve = []
    for _ in range(steps):
        curve.append(float(told.param_groups[0]["lr"]))
        told.step()
        if len(curve) < steps:
            scheduler.step()
    return curve


def _rows(encoder: Encoder, heads: nn.Module, settings: Training) -> list[dict[str, Any]]:
    """All groups of the image tower, open ever or not, the adapter's, then the heads'."""
    ladder, brought = ladder_of(encoder.visual), adapter_parameters(encoder)
    own = [(n, p) for n, p in encoder.visual.named_parameters() if not is_lora(n)]
    rows = []
    for depth, step in enumerate(ladder.steps):
        named = [(n, p) for n, p in own if ladder.depth[n] == depth]
        lr = settings.lr * settings.layer_decay ** (ladder.top - depth)
        lr *= settings.head_lr if step in ladder.new else 1
        opens = _opens(settings, depth, ladder.top)
        rows += _split(named, step, lr, settings.weight_decay, opens)
    told = {"lr": settings.lr * settings.head_lr, "weight_decay": 0.0, "open_from": 1}
    rows += [{"params": brought, "name": ADAPTER} | told] if brought else []
    below = ladder.top - 1  # the last stage, of which parts may have copies
    copied, lr = list(copies_of(encoder).named_parameters()), settings.lr * settings.layer_decay
    opens = _opens(settings, below, ladder.top)
    rows += _split(copied, f"{ladder.steps[below]}, copies", lr, settings.weight_decay, opens)
    learnt = [(name, p) for name, p in heads.named_parameters() if p.requires_grad]
    weights = [(name, p) for name, p in learnt if BALANCE in name.split(".")]
    learnt = [(name, p) for name, p in learnt if BALANCE not in name.split(".")]
    rows += _split(learnt, HEADS, settings.lr * settings.head_lr, settings.weight_decay, 1)
    return rows + _split(weights, BALANCE, _BALANCE_LR, 0.0, 1)


def _split(
    named: list[tuple[str, nn.Parameter]], step: str, lr: float, decay: float, opens: int | None
) -> list[dict[str, Any]]:
    """The parameters with weight decay, and those without; no group that would be empty."""
    plain = [p for name, p in named if p.ndim < 2 or _TABLES.search(name)]
    without = {id(p) for p in plain}
    decayed = [p for _, p in named if id(p) not in without]
    told: dict[str, Any] = {"lr": lr, "open_from": opens}
    both = [
        {"params": decayed, "weight_decay": decay, "name": step} | told,
        {"params": plain, "weight_decay": 0.0, "name": f"{step}, no decay"} | told,
    ]
    return [group for group in both if group["params"]]


def _opens(settings: Training, depth: int, top: int) -> int | None:
    """The epoch (1-based) from which a step of the tower trains; None: never."""
    first, below = settings.head_epochs + 1, top - depth
    if settings.unfreeze_blocks is not None:
        if settings.unfreeze_blocks > top:
            raise ValueError(
                f"unfreeze_blocks {settings.unfreeze_blocks}: this tower has {top} steps above its"
                " stem; null opens all of it"
            )
        return first if settings.unfreeze_blocks and below <= settings.unfreeze_blocks else None
    if settings.gradual:
        late = max(0, below - (settings.gradual.start - 1))
        return first + late * settings.gradual.every
    return first
