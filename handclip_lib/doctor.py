"""`handclip doctor`: what is installed, found and missing, each with the command that mends it."""

import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import open_clip
import pandas as pd
import psutil
import torch
from huggingface_hub import try_to_load_from_cache
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from handclip_lib import _TORCHVISION_OPERATORS, __version__, params
from handclip_lib.data import tables
from handclip_lib.models import weights
from handclip_lib.report.runs import reports_root
from handclip_lib.schema import Params

GOOD, ABSENT, BROKEN = "✓", "–", "✗"  # – is missing or unusual, and nothing fails for it
_GIB = 2**30
_INSTALL = "pip install -c constraints.txt -e ."
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_OPENAI = ("ViT-B-16-quickgelu", "RN50-quickgelu")


@dataclass(frozen=True)
class Finding:
    """One line of the report. `mend` is the command that gets what is missing."""

    mark: str
    name: str
    fact: str
    mend: str = ""


def main() -> int:
    """Print what was found. Returns 1 if something that every run needs is broken, else 0."""
    parts: dict[str, Callable[[], list[Finding]]] = {
        "Software": software,
        "Machine": machine,
        "Folders": folders,
        "Data": data_sets,
        "Weights": towers,
        "Notebooks": notebooks,
    }
    found = {title: part() for title, part in parts.items()}
    print(render(found))
    broken = [f.name for findings in found.values() for f in findings if f.mark == BROKEN]
    print(f"\nBroken: {', '.join(broken)}" if broken else "\nReady: `handclip demo` can run here.")
    return 1 if broken else 0


def render(found: dict[str, list[Finding]]) -> str:
    """The report as text: a block for each part, names and facts aligned, commands below."""
    width = max(len(f.name) for findings in found.values() for f in findings)
    lines: list[str] = []
    for title, findings in found.items():
        lines += ["", title] if lines else [title]
        for f in findings:
            lines.append(f"  {f.mark} {f.name:<{width}}  {f.fact}")
            if f.mend:
                lines.append(f"    {'':<{width}}  → {f.mend}")
    return "\n".join(lines)


def software() -> list[Finding]:
    """Python, HandCLIP and the packages it needs, against the ranges and the tested pins."""
    wanted = tomllib.loads((params.ROOT / "pyproject.toml").read_text())["project"]
    right = Requirement(f"python{wanted['requires-python']}").specifier
    python = GOOD if platform.python_version() in right else BROKEN
    found = [
        Finding(python, "Python", f"{platform.python_version()} at {sys.executable}"),
        Finding(GOOD, "HandCLIP", f"{__version__} at {params.ROOT}"),
    ]
    tested = pins(params.ROOT / "constraints.txt")
    checked = [package(Requirement(text), tested) for text in wanted["dependencies"]]
    odd = [f for f in checked if f.mark != GOOD]
    same = len(checked) - len(odd)
    found.append(Finding(GOOD, "packages", f"{same} of {len(checked)} as tested together"))
    return found + odd + [_torchvision()]


def pins(path: Path) -> dict[str, str]:
    """{canonical name: version} of a constraints file; empty where there is none."""
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = [line.split("#")[0].split("==") for line in lines if "==" in line.split("#")[0]]
    return {canonicalize_name(name.strip()): pin.strip() for name, pin in pairs}


def package(wanted: Requirement, tested: dict[str, str]) -> Finding:
    """One package against its range (outside: broken) and its pin (another: only said)."""
    try:
        have = version(wanted.name)
    except PackageNotFoundError:
        return Finding(BROKEN, wanted.name, f"missing, needs {wanted.specifier}", _INSTALL)
    pin = tested.get(canonicalize_name(wanted.name), "")
    if not wanted.specifier.contains(have, prereleases=True):
        return Finding(BROKEN, wanted.name, f"{have}, needs {wanted.specifier}", _INSTALL)
    if pin and have.split("+")[0] != pin:
        return Finding(ABSENT, wanted.name, f"{have}, tested with {pin}", _INSTALL)
    return Finding(GOOD, wanted.name, have)


def _torchvision() -> Finding:
    if _TORCHVISION_OPERATORS is None:
        return Finding(GOOD, "torchvision", "its wheel matches torch")
    fact = "its wheel is linked with CUDA beside a CPU-only torch; mended at import, nothing to do"
    return Finding(GOOD, "torchvision", fact)


def machine() -> list[Finding]:
    """Processor, accelerator, free memory."""
    model, flags = _processor()
    fast = {"avx512_bf16", "amx_bf16"} & flags
    bf16 = "bf16 in hardware" if fast else "no bf16 in hardware"
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    memory = psutil.virtual_memory()
    free = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    return [
        Finding(GOOD, "processor", f"{model}, {cores} cores, {bf16}"),
        _accelerator(),
        Finding(GOOD if memory.available > 2 * _GIB else ABSENT, "memory", free),
    ]


def _accelerator() -> Finding:
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / _GIB
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        fact = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, {memory:.0f} GiB"
        return Finding(GOOD, "GPU", f"{fact}, {bf16}, CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        return Finding(GOOD, "GPU", "Apple (mps)")
    if shutil.which("nvidia-smi"):
        fact = f"nvidia-smi is here, but torch {torch.__version__} does not see a GPU"
        return Finding(ABSENT, "GPU", fact, "make clean && make install TORCH_INDEX=")
    return Finding(ABSENT, "GPU", "none: the demo needs none, ViT-B/16 wants one")


def _processor() -> tuple[str, set[str]]:
    """The processor's name and its feature flags (empty where the system does not list them)."""
    told: dict[str, str] = {}
    listing = Path("/proc/cpuinfo")
    for line in listing.read_text().splitlines() if listing.is_file() else []:
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    name = told.get("model name") or platform.processor() or platform.machine()
    return name, set(told.get("flags", "").split())


def folders() -> list[Finding]:
    """Where caches and reports go, whether they can be written, and the room there."""
    return [
        _writable("cache", params.cache_dir(), "HANDCLIP_CACHE"),
        _writable("reports", reports_root(Params()), "HANDCLIP_REPORTS"),
    ]


def _writable(name: str, folder: Path, variable: str) -> Finding:
    there = next(f for f in (folder, *folder.parents) if f.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        fact = f"{folder} cannot be written"
        return Finding(BROKEN, name, fact, f"export {variable}=/a/folder/of/yours")
    free = shutil.disk_usage(there).free / _GIB
    mark = GOOD if free > 2 else ABSENT
    return Finding(mark, name, f"{folder} ({free:.0f} GiB free; ${variable} moves it)")


def data_sets() -> list[Finding]:
    """The data sets at their usual places; read as tables, photographs not looked into."""
    data = params.ROOT / "data"
    return [
        _table("11k Hands", data / "11k", tables.read_11k, f"get it from {tables.SOURCE_11K}"),
        _table("Hand Dorsal", data / "HD", tables.read_hd, "on request; README.md says where"),
        _table("drawn hands", data / "drawn_hands", tables.read_11k, "handclip demo-data"),
    ]


def _table(
    name: str, root: Path, read: Callable[[str | Path, bool], pd.DataFrame], get: str
) -> Finding:
    if not root.is_dir():
        return Finding(ABSENT, name, f"not at {root}", get)
    try:
        table = read(root, False)
    except (FileNotFoundError, tables.TableError) as error:
        return Finding(ABSENT, name, str(error).splitlines()[0])
    return Finding(GOOD, name, f"{table.attrs['title']}: {len(table)} photographs at {root}")


def towers() -> list[Finding]:
    """The shipped tiny towers (the demo needs them) and OpenAI's, if they are on this machine."""
    return [_tiny(name) for name in weights.TINY] + [_openai(name) for name in _OPENAI]


def _tiny(name: str) -> Finding:
    try:
        source = weights.find_source(name, None)
    except (FileNotFoundError, weights.WeightsError) as error:
        return Finding(BROKEN, name, str(error), "make tiny")
    size = source.weights.stat().st_size / 1e6 if source.weights else 0.0
    return Finding(GOOD, name, f"shipped with the kit, {size:.1f} MB")


def _openai(name: str) -> Finding:
    repo = open_clip.get_pretrained_cfg(name, "openai")["hf_hub"].rstrip("/")
    own = sorted((params.cache_dir() / "weights").glob(f"{name}.openai.*"))
    cached = try_to_load_from_cache(repo, weights.WEIGHTS)
    found = own[0] if own else cached
    if isinstance(found, str | Path):
        return Finding(GOOD, f"{name} (openai)", str(found))
    get = f"hf download {repo} {weights.WEIGHTS}"
    return Finding(ABSENT, f"{name} (openai)", "not on this machine; fetched when first used", get)


def notebooks() -> list[Finding]:
    """The kernel that runs notebooks, and the browser that the browser tests drive."""
    browser = next((path for name in _CHROMIUM if (path := shutil.which(name))), None)
    missing = "not found; only the browser tests want it"
    return [
        _kernel(),
        Finding(GOOD, "Chromium", browser)
        if browser
        else Finding(ABSENT, "Chromium", missing, "apt-get install chromium"),
    ]


def _kernel() -> Finding:
    """The kernel of JupyterLab and plain papermill; `handclip run` brings its own."""
    mend = "python -m ipykernel install --sys-prefix"
    try:
        interpreter = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return Finding(ABSENT, "kernel", "no Jupyter kernel 'python3' for JupyterLab", mend)
    # a bare "python" means: the interpreter of whoever starts the kernel
    if interpreter.startswith("python") or Path(interpreter).absolute() == Path(sys.executable):
        return Finding(GOOD, "kernel", "python3, this interpreter")
    fact = f"JupyterLab's python3 is {interpreter}, another interpreter"
    return Finding(ABSENT, "kernel", fact, mend)
