"""pyproject (ranges), constraints (pins), environment.yml and Makefile say the same thing."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from handclip_lib import __version__, doctor
from handclip_lib.params import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = doctor.pins(ROOT / "constraints.txt")
DECLARED = [Requirement(r) for r in PROJECT["dependencies"]]
EVERY = DECLARED + [Requirement(r) for k, extra in EXTRAS.items() if k != "all" for r in extra]
# import name -> distribution, where they differ
DISTRIBUTIONS = {
    "open_clip": "open-clip-torch",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
}
# Not imported by the library: notebooks run in them, or the library calls them as programs.
WITHOUT_IMPORT = {"jupyterlab", "ipykernel", "ipywidgets", "ipympl"}
# Declared for stages to come; leaves this list when it is imported.
NOT_YET: set[str] = set()


@pytest.mark.parametrize("wanted", EVERY, ids=lambda r: r.name)
def test_every_dependency_has_a_pin_inside_its_range(wanted: Requirement) -> None:
    name = canonicalize_name(wanted.name)
    assert name in PINS, f"constraints.txt has no pin of {wanted.name}"
    assert wanted.specifier.contains(PINS[name]), f"{wanted} does not admit the pin {PINS[name]}"


def test_every_line_of_the_constraints_is_a_plain_pin() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wrong = [x for x in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", x)]
    assert not wrong, "not NAME==VERSION (local versions such as +cpu are refused elsewhere)"
    assert len(PINS) == len(lines), "a package is pinned twice"


def test_ranges_admit_the_pythons_and_the_torch_that_gpu_machines_have() -> None:
    pythons = SpecifierSet(PROJECT["requires-python"])
    assert [v for v in ("3.10", "3.11", "3.12", "3.13") if v in pythons] == ["3.11", "3.12"]
    ranges = {canonicalize_name(r.name): r.specifier for r in EVERY}
    assert ranges["torch"].contains("2.11.0+cu130") and ranges["torchvision"].contains("0.26.0")
    assert "lightning" not in ranges, "lightning 2.6.2 and 2.6.3 were malware: lightning-fabric"


def test_all_holds_every_extra() -> None:
    (everything,) = (Requirement(r) for r in EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(EXTRAS) - {"all"}


def test_conda_environment_is_pip_with_the_same_pins() -> None:
    told = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert told["name"] == PROJECT["name"] and "conda-forge" in told["channels"]
    *conda, pip = told["dependencies"]
    python = next(d for d in conda if d.startswith("python=")).removeprefix("python=")
    assert python in SpecifierSet(PROJECT["requires-python"])
    assert pip == {"pip": ["-c constraints.txt", "-e .[all]"]}


def imported() -> dict[str, set[str]]:
    """{distribution: modules of the library that import it}, standard library left out."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "handclip_lib").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
            for top in {name.partition(".")[0] for name in names} - {"handclip_lib", ""}:
                if top not in sys.stdlib_module_names:
                    where = path.relative_to(ROOT).as_posix()
                    found.setdefault(canonicalize_name(DISTRIBUTIONS.get(top, top)), set()).add(
                        where
                    )
    return found


def test_what_the_library_imports_is_declared() -> None:
    declared = {canonicalize_name(r.name) for r in DECLARED}
    optional = {canonicalize_name(Requirement(r).name) for k in EXTRAS for r in EXTRAS[k]}
    missing = {k: sorted(v) for k, v in imported().items() if k not in declared | optional}
    assert not missing, f"imported, and not in pyproject.toml: {missing}"


def test_what_is_declared_is_used() -> None:
    used = set(imported()) | WITHOUT_IMPORT | NOT_YET | {"torchvision"}
    idle = {canonicalize_name(r.name) for r in DECLARED} - used
    assert not NOT_YET & set(imported()), "imported by now: take it from NOT_YET"
    assert not idle, f"in pyproject.toml, and nothing imports it: {sorted(idle)}"


def test_version_is_in_changelog_and_citation() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == PROJECT["license"]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
class TestMakefile:
    def test_help_is_the_default_and_lists_every_target(self) -> None:
        listed = self.make().stdout
        phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
        assert phony
        for target in phony.group(1).split():
            assert f"make {target} " in listed, f"`make help` does not list {target}"

    @pytest.mark.parametrize("python", ["/bin/false", sys.executable])
    def test_an_interpreter_that_cannot_serve_is_refused_by_name(
        self, python: str, tmp_path: Path
    ) -> None:
        shutil.copy(ROOT / "Makefile", tmp_path)
        for name in ("pyproject.toml", "constraints.txt"):
            (tmp_path / name).touch()
        done = self.make("-n", "install", f"PYTHON={python}", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        if python == "/bin/false":
            done = self.make("install", f"PYTHON={python}", folder=tmp_path)
            assert done.returncode and "needs Python 3.11 or 3.12" in done.stdout
            assert not (tmp_path / ".venv").exists()

    def test_the_stamp_follows_the_pins(self, tmp_path: Path) -> None:
        shutil.copy(ROOT / "Makefile", tmp_path)
        stamps = []
        for pins in ("torch==1", "torch==2", "torch==1"):
            (tmp_path / "pyproject.toml").touch()
            (tmp_path / "constraints.txt").write_text(pins)
            told = self.make("-n", "install", f"PYTHON={sys.executable}", folder=tmp_path).stdout
            stamps.append(re.findall(r"touch (\S+)", told))
        assert stamps[0] == stamps[2] != stamps[1]

    @staticmethod
    def make(*arguments: str, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
        command = ["make", *arguments, "TORCH_INDEX="]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
