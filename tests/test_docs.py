"""What the documents say exists: commands, options, parameters, files, tables, pictures."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from handclip_lib import cli
from handclip_lib.params import ROOT, load

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("reports/*.md")])
TEXTS = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix()
)
PARAMETERS = {"aspect", "study", "seed", "tag", "overrides"}


def commands(program: str) -> list[tuple[str, str]]:
    """(document, command line) of every code span and shell line that begins with a program."""
    found = []
    for path, text in TEXTS.items():
        blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
        lines = [line for block in blocks for line in block.splitlines()]
        spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
        for line in [*lines, *spans]:
            line = line.replace(" …", "").strip()
            if line.split(" ")[0] == program:
                found.append((path.name, line))
    return sorted(set(found))


@pytest.mark.parametrize(("document", "line"), commands("handclip"))
def test_handclip_commands_are_understood(document: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if len(words) == 1:
        assert words[0] in cli.COMMANDS, f"{document}: no command '{words[0]}'"
        return
    asked = cli._parser().parse_args(words)  # exits with what is wrong
    study = getattr(asked, "study", None) or "demo"
    if study.endswith((".yaml", ".yml")):
        return  # the reader's own file
    settings = cli._overrides(getattr(asked, "set", []))
    load(getattr(asked, "aspect", None), study, overrides=settings)


@pytest.mark.parametrize(("document", "line"), commands("papermill"))
def test_papermill_commands_name_parameters_that_exist(document: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    names = {words[i + 1] for i, word in enumerate(words) if word == "-p"}
    assert names <= PARAMETERS, f"{document}: {line}"
    assert (ROOT / words[1]).is_file(), f"{document}: {line}"


@pytest.mark.parametrize(("document", "line"), commands("make"))
def test_make_targets_exist(document: str, line: str) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    targets = [w for w in shlex.split(line, comments=True)[1:] if "=" not in w]
    unknown = set(targets) - set(phony.group(1).split())
    assert not unknown, f"{document}: make {unknown}"


@each_document
def test_links_and_files_exist(path: Path) -> None:
    text = TEXTS[path]
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / target).exists(), f"{path.name} points to {target}, not there"
    anchors = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings(text)}
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in anchors, f"{path.name} points to #{anchor}"
    code = r"`((?:handclip_lib|params|tests|notebooks)/[\w./-]+\.(?:py|ya?ml|ipynb))`"
    for name in re.findall(code, text):
        assert (ROOT / name).is_file(), f"{path.name} names {name}, not there"


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)


@each_document
def test_places_for_tables_are_closed(path: Path) -> None:
    marks = re.findall(r"<!-- (table: [\w-]+|end) -->", TEXTS[path])
    assert all(m.startswith("table") for m in marks[::2]) and all(m == "end" for m in marks[1::2])
    assert len(marks) % 2 == 0
    assert len(marks[::2]) == len(set(marks[::2])), "a table has two places"


def test_the_studies_are_listed() -> None:
    listed = re.search(r"studies are files in `params/`: (.*?)\.\s", TEXTS[ROOT / "README.md"])
    assert listed
    known = {p.stem for p in (ROOT / "params").glob("*.yaml")}
    assert set(re.findall(r"`([^`]+)`", listed.group(1))) == known


def test_yaml_of_the_readme_is_a_study(tmp_path: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", TEXTS[ROOT / "README.md"], re.S):
        yaml.safe_load(block)
        (tmp_path / "mine.yaml").write_text(block)
        load(study=str(tmp_path / "mine.yaml"))
