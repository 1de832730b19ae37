"""Where a run's numbers came from: code, versions, machine, time and memory."""

import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from handclip_lib import __version__
from handclip_lib.params import ROOT
from handclip_lib.schema import Params

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "lightning-fabric",
    "pytorch-metric-learning",
    "kornia",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "Pillow",
    "matplotlib",
    "umap-learn",
    "papermill",
    "nbconvert",
)


def stamp(p: Params, seconds: float) -> dict[str, Any]:
    """Provenance of a run that took `seconds`: plain JSON values.

    `git.dirty` is True when tracked files differ from the commit, None outside a repository.
    """
    return {
        "handclip": __version__,
        "git": git_state(ROOT),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _device(p),
        "seconds": round(seconds, 2),
        "peak_memory_mb": _peak_memory_mb(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def git_state(folder: Path) -> dict[str, Any]:
    """Commit and whether tracked files were changed; None for both where git has no answer."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _device(p: Params) -> str:
    if p.device.accelerator in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if p.device.accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return f"CPU ({_cpu_name()}, {torch.get_num_threads()} threads)"


def _cpu_name() -> str:
    told = Path("/proc/cpuinfo")
    if told.is_file():
        for line in told.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _peak_memory_mb() -> dict[str, float]:
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, else KiB
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    if torch.cuda.is_available():
        peak["device"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 1) for name, value in peak.items()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
