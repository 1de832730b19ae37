"""The rules of the house that a machine can check, each with a message that says what to do."""

import ast
import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml

from handclip_lib.aspects import CHAIN
from handclip_lib.params import ROOT

LIBRARY = sorted((ROOT / "handclip_lib").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The stations that data passes; a module imports from its own and earlier ones.
STATIONS = (
    *(
        "aspects",
        "schema_base",
        "schema_train",
        "schema_chain",
        "schema_eval",
        "schema",
        "study_file",
        "variants",
        "params",
        "device",
        "data",
        "models",
        "losses",
    ),
    *("evaluate", "train", "report", "doctor", "bench", "export", "cli"),
)
MODULE_LINES, FUNCTION_LINES, CELL_LINES = 300, 40, 15
LARGEST_FILE = 500_000
PARAMETERS = {
    "aspect": ("str", "dorsal_r"),
    "study": ("str", "demo"),
    "seed": ("int", 0),
    "tag": ("str", ""),
    "overrides": ("dict", {}),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


each_module = pytest.mark.parametrize("path", LIBRARY, ids=name_of)


# -- the library ----------------------------------------------------------------------------------


def imports(path: Path, everywhere: bool = True) -> Iterator[str]:
    """Modules of the library that a module imports; everywhere=False: when it is imported."""
    tree = ast.parse(path.read_text())
    later = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    skipped = set() if everywhere else {n for top in later for n in ast.walk(top)}
    for node in ast.walk(tree) if everywhere else (n for t in tree.body for n in ast.walk(t)):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("handclip_lib"))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}:{node.lineno}: relative import"
            if (node.module or "").startswith("handclip_lib"):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield whole if module_file(whole) else str(node.module)


def module_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((p for p in candidates if p.is_file()), None)


def station(path: Path) -> str:
    return path.relative_to(ROOT / "handclip_lib").parts[0].removesuffix(".py")


@each_module
def test_imports_go_one_way(path: Path) -> None:
    if path.name == "__init__.py" and path.parent.name == "handclip_lib":
        assert not list(imports(path)), "the package itself imports none of its modules"
        return
    assert station(path) in STATIONS, f"a new station: give '{station(path)}' its place in STATIONS"
    for module in imports(path):
        if module == "handclip_lib":
            continue
        other = module.split(".")[1]
        assert STATIONS.index(other) <= STATIONS.index(station(path)), (
            f"{name_of(path)} imports {module}, but data goes {' → '.join(STATIONS)}"
        )


def test_no_module_imports_itself_through_others() -> None:
    graph = {p: {f for m in imports(p, False) if (f := module_file(m))} for p in LIBRARY}
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, "circle: " + " → ".join(map(name_of, (*trail, path)))
        if path not in done:
            for other in sorted(graph[path] - {path}):
                visit(other, (*trail, path))
            done.add(path)

    for path in LIBRARY:
        visit(path, ())


@each_module
def test_modules_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= MODULE_LINES, f"{name_of(path)} has {lines} lines: split it by what it does"
    long = {f.name: n for f in functions(ast.parse(text)) if (n := length(f)) > FUNCTION_LINES}
    assert not long, f"{name_of(path)}: longer than {FUNCTION_LINES} lines: {long}"


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


@each_module
def test_public_functions_are_documented_and_annotated(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert path.name == "__init__.py" or ast.get_docstring(tree), "no module docstring"
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
    owners: list[ast.Module | ast.ClassDef] = [tree, *classes]
    public = [f for o in owners for f in o.body if isinstance(f, ast.FunctionDef)]
    for f in (f for f in public if not f.name.startswith("_")):
        where = f"{name_of(path)}:{f.lineno} {f.name}"
        assert ast.get_docstring(f), f"{where} has no docstring"
        told = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
        bare = [a.arg for a in told if not a.annotation and a.arg not in ("self", "cls")]
        assert not bare and f.returns, f"{where}: annotate {bare or 'what it returns'}"


@each_module
def test_no_error_is_hidden(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ExceptHandler):
            continue
        where = f"{name_of(path)}:{node.lineno}"
        assert node.type is not None, f"{where}: bare except; name the exception"
        broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
        raises = any(isinstance(n, ast.Raise) for n in ast.walk(node))
        assert not broad or raises, f"{where}: catches everything and raises nothing"


@each_module
def test_parameters_have_no_second_home_of_defaults(path: Path) -> None:
    """`p.get("lr", 1e-3)` or `getattr(p, "lr", 1e-3)` would hide a misspelt parameter."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        where = f"{name_of(path)}:{node.lineno}"
        target, arguments = node.func, node.args
        if isinstance(target, ast.Name) and target.id == "getattr":
            assert len(arguments) < 3 or not is_params(arguments[0]), f"{where}: getattr default"
        if isinstance(target, ast.Attribute) and target.attr in ("get", "setdefault"):
            assert not is_params(target.value), f"{where}: default beside the parameter tree"


def is_params(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in ("p", "cfg", "config", "opt")


@each_module
def test_aspect_names_are_written_once(path: Path) -> None:
    # the default of the parameter tree is a default, and lives where defaults do
    allowed = {"aspects.py": set(CHAIN), "schema.py": {CHAIN[0]}, "params.py": {CHAIN[0]}}
    found = {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in CHAIN
    }
    assert found <= allowed.get(path.name, set()), f"{name_of(path)}: take them from aspects.py"


# Programs of their own, whose seed is part of what they make.
RECIPES = [f"handclip_lib/train/{name}.py" for name in ("tiny", "probe")]


@each_module
def test_devices_and_global_seeds_are_set_in_one_place(path: Path) -> None:
    """Asking is free (`torch.cuda.is_available()`, a comparison); naming a device is not."""
    name, tree = name_of(path), ast.parse(path.read_text())
    asked = {c for n in ast.walk(tree) if isinstance(n, ast.Compare) for c in ast.walk(n)}
    if name in ("handclip_lib/device.py", "handclip_lib/schema.py"):
        return
    for node in ast.walk(tree):
        where = f"{name}:{getattr(node, 'lineno', 0)}: devices are device.py's; take the Fabric"
        if isinstance(node, ast.Constant) and node not in asked:
            assert node.value not in ("cuda", "mps", "cuda:0"), where
        if isinstance(node, ast.Attribute) and node.attr == "cuda":
            assert ast.unparse(node.value) in ("torch", "torch.version"), where
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("np.random.seed", "numpy.random.seed", "random.seed"), where
            seeds_all = called == "torch.manual_seed" and "fork_rng" not in path.read_text()
            assert not seeds_all or name in RECIPES, f"{where}; use a torch.Generator"


@each_module
def test_arguments_are_not_passed_through_unseen(path: Path) -> None:
    kwargs = [(f, f.args.kwarg) for f in functions(ast.parse(path.read_text())) if f.args.kwarg]
    # a decorator's wrapper, whose arguments a ParamSpec types, passes on what was checked
    open_ended = [f.name for f, k in kwargs if ".kwargs" not in ast.unparse(k)]
    assert not open_ended, f"{name_of(path)}: **kwargs in {open_ended}; name the arguments"


# -- the notebooks --------------------------------------------------------------------------------


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [c for c in read(path).cells if c.cell_type == "code"]


def tagged(path: Path, tag: str) -> list[nbformat.NotebookNode]:
    return [c for c in code_cells(path) if tag in c.metadata.get("tags", [])]


def python(cell: nbformat.NotebookNode) -> ast.Module:
    """A cell's syntax tree; the two lines of autoreload are the only magic there may be."""
    magic = ("%load_ext autoreload", "%autoreload 2")
    return ast.parse("\n".join(x for x in cell.source.splitlines() if x.strip() not in magic))


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def test_there_are_notebooks_and_their_numbers_differ() -> None:
    numbers = [p.stem[:2] for p in NOTEBOOKS]
    assert numbers and len(set(numbers)) == len(numbers)
    wrong = [p.name for p in NOTEBOOKS if not re.fullmatch(r"\d\d_[a-z0-9_]+", p.stem)]
    assert not wrong, f"names are NN_words.ipynb: {wrong}"


@each_notebook
def test_title_cell(path: Path) -> None:
    first = read(path).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith(f"# {path.stem[:2]} · ")
    parts = ("Question", "Needs", "Leaves", "Time", "Source")
    missing = [word for word in parts if f"**{word}.**" not in first.source]
    assert not missing, f"the title cell lacks {missing}"
    time = next(x for x in first.source.splitlines() if x.startswith("**Time.**"))
    assert "smoke" in time and "demo" in time, "Time: smoke, demo and one GPU"


@each_notebook
def test_parameters_cell(path: Path) -> None:
    cells = tagged(path, "parameters")
    assert len(cells) == 1, "exactly one cell is tagged `parameters`"
    told = {}
    for line in python(cells[0]).body:
        assert isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value
        told[line.target.id] = (ast.unparse(line.annotation), ast.literal_eval(line.value))
    assert told == PARAMETERS


@each_notebook
def test_cells_are_short_and_explained(path: Path) -> None:
    cells = read(path).cells
    code = [c for c in cells if c.cell_type == "code"]
    assert 10 <= len(code) <= 24, f"{len(code)} code cells; 10 to 24, one idea each"
    long = [c.source for c in code if len(c.source.splitlines()) > CELL_LINES]
    assert not long, f"longer than {CELL_LINES} lines:\n{long[0] if long else ''}"
    for three in zip(cells, cells[1:], cells[2:], strict=False):
        kinds = {c.cell_type for c in three}
        assert kinds != {"code"}, f"three code cells in a row, at:\n{three[0].source}"


@each_notebook
def test_imports_are_in_the_first_code_cell(path: Path) -> None:
    first, *rest = code_cells(path)
    names = [
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in python(first).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    tops = [str(name).partition(".")[0] for name in names]
    early = {"torchvision", "open_clip", "timm"} & set(tops[: tops.index("handclip_lib")])
    assert not early, f"{early} before handclip_lib, which makes torchvision importable"
    for cell in rest:
        late = [n for n in ast.walk(python(cell)) if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not late, f"imported later:\n{cell.source}"


@each_notebook
def test_notebook_says_what_and_the_library_how(path: Path) -> None:
    forbidden = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda | ast.While
    for cell in code_cells(path):
        for line in cell.source.splitlines():
            assert not line.lstrip().startswith("!"), f"shell: {line}"
        for node in ast.walk(python(cell)):
            assert not isinstance(node, forbidden), f"belongs in the library:\n{cell.source}"
            if isinstance(node, ast.If | ast.IfExp):
                test = ast.unparse(node.test)
                assert not re.search(r"\b(study|aspect)\b", test), f"if {test}: hidden branch"


@each_notebook
def test_notebook_names_no_device_and_no_path(path: Path) -> None:
    for cell in read(path).cells:
        assert "cuda" not in cell.source.lower(), f"names a device:\n{cell.source}"
    a_path = re.compile(r"^(\.{0,2}/|~|(data|reports|params|notebooks|handclip_lib)/|[A-Z]:\\)")
    for cell in code_cells(path):
        for node in ast.walk(python(cell)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not a_path.match(node.value), f"a path: {node.value!r}; the library has them"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("open", "Path", "pathlib.Path", "os.chdir"), called


@each_notebook
def test_notebook_is_checked_and_saved_at_its_end(path: Path) -> None:
    code = code_cells(path)
    checks = tagged(path, "nbval-check-output")
    assert checks, "no cell is tagged nbval-check-output: nothing would be compared"
    assert all("print(" in c.source for c in checks), "a check cell prints what must not change"
    assert re.search(r"\brun\.save\(", code[-1].source), "the last code cell is run.save(metrics)"
    assert sum("run.save(" in c.source for c in code) == 1
    assert read(path).cells[-1].cell_type == "markdown", "the last cell says how to read it"


@each_notebook
def test_notebook_is_stripped(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    strip = "run `nbstripout notebooks/*.ipynb`"
    for cell in code_cells(path):
        assert not cell.outputs and cell.execution_count is None, strip
    keys = {key for cell in notebook.cells for key in cell.metadata}
    assert keys <= {"tags"}, f"cell metadata {keys - {'tags'}}: {strip}"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}, strip
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({c.id for c in notebook.cells}) == len(notebook.cells), "cell ids are not unique"


# -- the repository -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of files")
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"],
        capture_output=True,
        text=True,
    )
    assert not listed.returncode, listed.stderr
    return [f for name in listed.stdout.split("\0") if name and (f := ROOT / name).is_file()]


def test_no_large_file(tracked: list[Path]) -> None:
    tiny = ROOT / "handclip_lib" / "models" / "tiny"
    large = [name_of(f) for f in tracked if f.stat().st_size > LARGEST_FILE]
    large = [name for name in large if tiny not in (ROOT / name).parents]
    assert not large, f"above {LARGEST_FILE} bytes: {large}"


def test_shipped_weights_are_small(tracked: list[Path]) -> None:
    for folder in (ROOT / "handclip_lib" / "models" / "tiny").glob("*/"):
        size = sum(f.stat().st_size for f in tracked if folder in f.parents)
        assert size <= 16e6, f"{name_of(folder)} holds {size / 1e6:.1f} MB; 16 at most"


def test_no_photograph_is_committed(tracked: list[Path]) -> None:
    pictures = {".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".png"}
    allowed = (ROOT / "reports" / "gallery", ROOT / "tests")
    stray = [f for f in tracked if f.suffix.lower() in pictures]
    stray = [name_of(f) for f in stray if not any(a in f.parents for a in allowed)]
    assert not stray, f"pictures of the README lie in reports/gallery: {stray}"


def test_no_path_of_a_developers_machine(tracked: list[Path]) -> None:
    machine = re.compile(r"(?<![\w.:/$}-])/(work|tmp|root|home|Users)/\w")
    for path in tracked:
        with contextlib.suppress(UnicodeDecodeError):
            for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not machine.search(line), f"{name_of(path)}:{n}: {line.strip()[:120]}"


def test_no_backup_and_no_catch_all_module(tracked: list[Path]) -> None:
    bad = re.compile(
        r"(^|[_-])(utils?|helpers?|misc|old|backup|bak|copy|final|(?<!moco_)v\d+|tmp)\.(py|ipynb|ya?ml)$"
    )
    assert not [name_of(f) for f in tracked if bad.search(f.name)]
    paired = {f.with_suffix(".py") for f in NOTEBOOKS}
    assert not paired & set(tracked), "no .py copies of notebooks"


def test_names_of_the_first_scripts_live_in_the_readme_only(tracked: list[Path]) -> None:
    old = re.compile(r"loss_factory|run_eval_clip|train_stage\d|eval_query_gallery|make_model_")
    for path in tracked:
        if path.suffix == ".py" and path.parent != ROOT / "tests" or path.suffix == ".ipynb":
            found = old.search(path.read_text(encoding="utf-8"))
            assert not found, f"{name_of(path)}: '{found.group() if found else ''}'"


def test_every_study_says_what_it_is() -> None:
    for path in sorted((ROOT / "params").rglob("*.yaml")):
        text = path.read_text()
        assert text.startswith("# "), f"{name_of(path)}: first line is a comment that says what"
        assert isinstance(yaml.safe_load(text), dict)
