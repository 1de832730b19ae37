"""Strict papermill: a notebook runs into its run folder, or says why not.

Papermill alone accepts a misspelt parameter (it warns and runs the defaults), a notebook without
a `parameters` cell (the injected values are overwritten), and a kernel that died (every cell is
marked completed). Here names are checked, values pass through `params.load` before a kernel
starts, and a run has succeeded only when it wrote metrics.json: an earlier one is removed first.
"""

import ast
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill
from filelock import FileLock, Timeout
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from handclip_lib.params import ROOT, ParamError, load, own_aspect, study_path
from handclip_lib.report.export import export_html
from handclip_lib.report.index import write_index
from handclip_lib.report.runs import check_tag, open_run, replacing
from handclip_lib.schema_base import did_you_mean

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_OPENED = re.compile(r"""open_run\(\s*["']([^"']+)["']""")
# What a kernel of ours is told: inline figures whatever the caller's backend, no widgets, no noise
_KERNEL_ENV = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "JUPYTER_PLATFORM_DIRS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


class RunFailed(RuntimeError):
    """A notebook that ran and did not finish; the message says where, why and what was kept."""


def run_notebook(
    notebook: str | Path,
    parameters: Mapping[str, Any],
    say: Callable[[str], None] = print,
    index: bool = True,
) -> Path:
    """Run a notebook with parameters into its run folder; returns the path of report.html.

    notebook: a name in notebooks/ (`01_baseline`, `01`) or a path; parameters: by the names in
    its `parameters` cell, whose values count where nothing is given; aspect, study, seed, tag and
    overrides are checked by `params.load` first. A relative study path counts from the caller's
    folder. `say` gets a line a cell; index: renew the study's index.html afterwards. Raises
    ParamError or FileNotFoundError before the kernel starts, RunFailed after; the executed
    notebook is kept as report.ipynb either way, or as failed.ipynb beside an earlier result.
    """
    path = find_notebook(notebook)
    cells = _read(path)
    told = _resolved(path, cells, parameters)
    p = load(**{name: told[name] for name in _ASKED if name in told})
    told["aspect"] = p.aspect
    check_tag(p, told.get("study", p.study))
    folder = open_run(path.stem, p).folder
    started = time.monotonic()
    with _alone(folder), replacing(folder, say) as failed:
        say(f"{path.stem} · {p.study} · {p.aspect} · seed {p.seed}{f' · {p.tag}' if p.tag else ''}")
        _execute(path, cells, told, folder / "report.ipynb", failed, say)
        if not (folder / "metrics.json").is_file():
            raise RunFailed(
                f"{path.stem} ran to its end but wrote no metrics.json; its last code cell must be"
                f" run.save({{…}})\nexecuted notebook: {failed}"
            )
        report = export_html(folder, p)
    if index:
        write_index(p)
    say(f"{path.stem} finished in {time.monotonic() - started:.0f} s: {report}")
    return report


_ASKED = ("aspect", "study", "seed", "tag", "overrides")


def find_notebook(notebook: str | Path) -> Path:
    """The file behind a notebook's name, number or path; FileNotFoundError with a suggestion."""
    text = str(notebook)
    if os.sep in text or (text.endswith(".ipynb") and Path(text).is_file()):
        path = Path(text).expanduser().absolute()
        if not path.is_file():
            raise FileNotFoundError(f"no notebook {path}")
        return path
    name = text.removesuffix(".ipynb")
    known = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    numbered = [stem for stem in known if stem.split("_")[0] == name]
    if name in known or len(numbered) == 1:
        return known[name if name in known else numbered[0]]
    raise FileNotFoundError(
        f"no notebook '{text}'; notebooks/ has {', '.join(known) or 'none'}"
        f"{did_you_mean(name, known)}"
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        held = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise RunFailed(
            f"another run is using {folder}; wait until it ends, or give this one a tag"
        ) from None
    with held:
        yield


def _read(path: Path) -> NotebookNode:
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat lets the parser's and the validator's own errors through
        raise ValueError(f"{path} is not a notebook that can be read: {error}") from None
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ParamError(f"{path}: one cell must have the tag 'parameters', found {len(tagged)}")
    opened = set(_OPENED.findall("\n".join(c.source for c in notebook.cells)))
    if opened - {path.stem}:
        raise ParamError(
            f"{path.name} opens the run '{min(opened - {path.stem})}', which is another"
            f' notebook\'s folder; write open_run("{path.stem}", p)'
        )
    return notebook


def _resolved(path: Path, notebook: NotebookNode, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The values to inject: the cell's, then those given; the study where the kernel finds it.

    A study that is for one aspect only wins over the cell's aspect.
    """
    known = _assigned(notebook)
    for name in parameters:
        if name not in known:
            raise ParamError(
                f"{path.name} has no parameter '{name}'{did_you_mean(name, known)};"
                f" its parameters are {', '.join(known)}"
            )
    told = dict(parameters)
    for name in (n for n in _ASKED if n in known and n not in parameters):
        try:
            told[name] = ast.literal_eval(known[name])
        except ValueError:
            raise ParamError(
                f"{path.name}: '{name}' in the parameters cell must be a plain value"
            ) from None
    study = str(told.get("study", ""))
    if study.endswith((".yaml", ".yml")) or os.sep in study:
        told["study"] = str(study_path(study))
    if study and parameters.get("aspect") is None:
        told["aspect"] = own_aspect(study) or told.get("aspect")
    return told


def _assigned(notebook: NotebookNode) -> dict[str, Any]:
    """What the `parameters` cell assigns: name -> node of the value."""
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    found: dict[str, Any] = {}
    for node in ast.parse(cell.source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {t.id: node.value for t in targets if isinstance(t, ast.Name)}
    return found


def _execute(
    path: Path,
    notebook: NotebookNode,
    parameters: dict[str, Any],
    output: Path,
    failed: Path,
    say: Callable[[str], None],
) -> None:
    """Run all cells; what was executed is at `output` afterwards, whatever happened.

    failed: where a failed one ends up, which its error says.
    """
    partial = output.with_name(".report.partial.ipynb")
    headings = _headings(notebook)
    on_start, on_end, where = _progress(headings, say)
    try:
        with _kernel() as manager:
            papermill.execute_notebook(
                path,
                partial,
                parameters,
                kernel_name=manager.kernel_name,
                language="python",
                progress_bar=False,
                cwd=path.parent,
                km=manager,
                on_cell_execute=on_start,
                on_cell_executed=on_end,
            )
    except PapermillExecutionError as error:
        raise RunFailed(_failure(path.stem, where(), error, failed)) from None
    except DeadKernelError:
        raise RunFailed(
            f"{path.stem}: the kernel died in {where()}; the usual reason is memory: try a smaller"
            f" batch_size\nexecuted notebook: {failed}"
        ) from None
    finally:
        if partial.is_file():
            partial.replace(output)


def _failure(name: str, where: str, error: PapermillExecutionError, failed: Path) -> str:
    lines = _ANSI.sub("", str(error.evalue)).strip().splitlines()[:8]
    said = "\n  ".join(lines) if lines else ""
    return f"{name} failed in {where}:\n  {error.ename}: {said}\nexecuted notebook: {failed}"


def _headings(notebook: NotebookNode) -> dict[str, str]:
    """Code cell id -> the heading above it."""
    above, headings = "", {}
    for number, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{number}")
        if cell.cell_type == "markdown":
            titles = re.findall(r"^#+\s+(.+)", cell.source, re.MULTILINE)
            above = titles[-1] if titles else above
        elif cell.source.strip():
            headings[cell.id] = above
    return headings


def _progress(
    headings: Mapping[str, str], say: Callable[[str], None]
) -> tuple[Callable[..., None], Callable[..., None], Callable[[], str]]:
    """Hooks for the start and end of a cell, and the words for where it is."""
    order = {key: number for number, key in enumerate(headings, start=1)}
    now: dict[str, Any] = {"cell": "the first cell", "since": time.monotonic()}

    def start(cell: NotebookNode, cell_index: int) -> None:
        key = cell.get("id", "")
        number = f"{order[key]}/{len(order)}" if key in order else "given"
        heading = headings.get(key, "parameters")
        now.update(cell=f"cell {number} ({heading})", since=time.monotonic())

    def end(cell: NotebookNode, cell_index: int, execute_reply: object) -> None:
        key = cell.get("id", "")
        if key in order:
            seconds = time.monotonic() - now["since"]
            say(f"  {order[key]:2d}/{len(order)}  {seconds:6.1f} s  {headings[key]}")

    return start, end, lambda: str(now["cell"])


@contextmanager
def _kernel() -> Iterator[AsyncKernelManager]:
    """A kernel of this very interpreter, whatever kernels are installed by the same name."""
    with tempfile.TemporaryDirectory(prefix="handclip-kernel-") as home:
        folder = Path(home, "python3")
        folder.mkdir()
        launch = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher"]
        launch += ["--log-level=ERROR"]  # it warns that it speaks TCP, which is local here
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        spec = {
            "argv": [*launch, "-f", "{connection_file}"],
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "env": _KERNEL_ENV | {"PYTHONPATH": path},
        }
        (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
        specs = KernelSpecManager(kernel_dirs=[home], ensure_native_kernel=False)
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=specs,
            connection_file=str(Path(home, "connection.json")),
        )
        try:
            yield manager
        finally:
            if manager.has_kernel:
                run_sync(manager.shutdown_kernel)(now=True)
