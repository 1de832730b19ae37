"""Where a run's numbers came from: code, versions, machine, time and memory."""

import hashlib
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from handclip_lib import __version__
from handclip_lib.data.check import quantity
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

    `git.dirty`: whether code, notebooks or studies differ from the commit; None: no repository.
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
    """Commit, and whether files that make results were changed or added; None: git can't say."""
    parts = ("handclip_lib", "notebooks", "params")
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=normal", "--", *parts)
    if commit is None or changed is None:
        return {"commit": commit, "dirty": None}
    return {"commit": commit, "dirty": bool(changed)}


def library_sha256() -> str:
    """Hash of what a run takes from the kit itself: the library's code and the tiny towers."""
    library = ROOT / "handclip_lib"
    digest = hashlib.sha256()
    for path in sorted([*library.rglob("*.py"), *library.glob("models/tiny/*/*.*")]):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(library).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _git(folder: Path, *words: str) -> str | None:
    # a clone may belong to another user (a container, a shared folder): it is only read here
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _device(p: Params) -> str:
    if p.device.accelerator in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if p.device.accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return f"CPU ({_cpu_name()}, {quantity(torch.get_num_threads(), 'thread')})"


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
