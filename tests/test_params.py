"""Parameters: every study builds, every error says where, every field is read by something."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pydantic
import pytest
import torch
import yaml

from handclip_lib import params
from handclip_lib.device import make_fabric
from handclip_lib.params import ParamError, load
from handclip_lib.schema import Node, Params

STUDIES = sorted(f.stem for f in (params.ROOT / "params").glob("*.yaml"))
USERS_STAGE_2 = """\
experiment: stage2_vitb16_11k_dorsal_r_ce_triplet_center
model: vitb16
dataset: 11k
aspect: dorsal_r
variant: finetuned

resume_from: saved_models/stage1_frozen_text_vitb16_11k_dorsal_r_e30_lr0001_bs32_\
losscross_entropy.pth

batch_size: 32
epochs: 30
lr: 0.00005

losses:
  - type: cross_entropy
  - type: triplet
  - type: center

output_dir: train_logs/
save_dir: saved_models/
"""


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_builds(study: str) -> None:
    p = load("dorsal_r", study)
    assert (p.aspect, p.study, p.seed, p.tag) == ("dorsal_r", study, 0, "")
    assert p.table().loc["study", "value"] == study


def test_defaults_suit_a_bare_call() -> None:
    assert load().study == "demo"
    assert load(overrides=None) == load(overrides={}) == load(overrides="")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stage1": {"lrate": 1}}, r"'stage1\.lrate'; did you mean 'stage1\.lr'\?"),
        ({"stage2.lrate": 1}, r"'stage2\.lrate'; did you mean 'stage2\.lr'\?"),
        ({"drawn": {"persons": 9}}, r"unknown parameter 'drawn'"),
        ({"draws": 3}, r"'draws'; did you mean 'split\.draws'\?"),
        ({"stage1": {"epochs": 2.5}}, r"stage1\.epochs: .*\(got 2\.5\)"),
        ({"stage1": {"epochs": 0}}, r"stage1\.epochs: .*greater than or equal to 1"),
        ({"stage1": {"epochs": True}}, r"stage1\.epochs: expected a number, got true/false"),
        ({"stage1": {"lr": True}}, r"stage1\.lr: expected a number, got true/false"),
        ({"stage1": {"lr": "fast"}}, r"stage1\.lr: .*\(got 'fast'\)"),
        ({"stage1": {"lr": "nan"}}, r"stage1\.lr: "),
        ({"split": {"draws": 101}}, r"split\.draws: .*\(got 101\)"),
        ({"split": {"mode": "publish"}}, r"split\.mode: .*'published' or 'person_disjoint'"),
        ({"model": {"fit": "crop"}}, r"model\.fit: "),
        ({"evaluation": {"feature": []}}, r"at least one of penult, pool, proj"),
        ({"evaluation": {"feature": ["pool", "pool"]}}, r"each once"),
        ({"baseline": {"templates": ["a hand"]}}, r"needs the slot \{aspect\}"),
        ({"split": 3}, r"split: "),
        ("stage1: [", r"overrides is not valid YAML"),
        ("- a list", r"overrides: expected 'key: value' lines, got list"),
    ],
)
def test_a_bad_value_is_refused_with_its_path(overrides: object, message: str) -> None:
    with pytest.raises(ParamError, match=message):
        load(overrides=overrides)  # type: ignore[arg-type]


def test_all_errors_come_together() -> None:
    with pytest.raises(ParamError) as caught:
        load(overrides={"stage1": {"lrate": 1, "epochs": 0}, "split.draws": "many"})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("tag", ["../up", "a/b", ".hidden", "a b", "ä"])
def test_a_tag_is_a_plain_folder_name(tag: str) -> None:
    with pytest.raises(ParamError, match="tag"):
        load(tag=tag)


def test_an_unknown_aspect_is_refused_with_the_nearest() -> None:
    with pytest.raises(ParamError, match=r"unknown aspect; did you mean 'dorsal_r'\?"):
        load(aspect="dorsal_rr")


def test_text_becomes_numbers() -> None:
    p = load(overrides={"stage1": {"lr": "5e-5", "epochs": "7"}})
    assert p.stage1.lr == 5e-5
    assert p.stage1.epochs == 7 and isinstance(p.stage1.epochs, int)
    assert isinstance(yaml.safe_load("lr: 5e-5")["lr"], str)  # what YAML 1.1 makes of it
    assert load(overrides="stage1.lr: 5e-5").stage1.lr == 5e-5
    assert load(overrides={"model.name": 50}).model.name == "50"


@pytest.mark.parametrize(
    "overrides",
    [
        {"stage2": {"lr": 1e-6, "epochs": 3}},
        {"stage2.lr": 1e-6, "stage2.epochs": 3},
        {"stage2.lr": 1e-6, "stage2": {"epochs": 3}},
        "stage2: {lr: 1.0e-6, epochs: 3}",
        "stage2.lr: 1e-6\nstage2.epochs: 3",
    ],
)
def test_overrides_win_in_every_spelling(overrides: object) -> None:
    p = load(study="smoke", overrides=overrides)  # type: ignore[arg-type]
    assert (p.stage2.lr, p.stage2.epochs) == (1e-6, 3)
    assert p.data.drawn.persons == load(study="smoke").data.drawn.persons  # the rest is kept


def test_the_tree_is_frozen() -> None:
    p = load()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        p.stage1.lr = 1.0
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        p.seed = 1


def test_overrides_are_not_changed_and_the_tree_survives_json() -> None:
    told = {"split": {"seed": 4}}
    p = load(overrides=told)
    assert told == {"split": {"seed": 4}}
    assert Params.model_validate(json.loads(p.model_dump_json())) == p


def test_the_table_shows_what_differs() -> None:
    rows = load("palmar_l", "smoke", seed=3, overrides={"split.seed": 5}).table()["value"]
    assert rows["split.seed"] == "5" and rows["seed"] == "3" and rows["aspect"] == "palmar_l"
    assert "split.legacy_tree" not in rows


def test_the_users_stage_2_file_is_a_study(tmp_path: Path) -> None:
    file = tmp_path / "train_vitb16_11k_dorsal_r_ce_triplet.yml"
    file.write_text(USERS_STAGE_2)
    p = load("dorsal_r", str(file))
    assert p.study == file.stem and p.experiment.startswith("stage2_vitb16")
    assert p.model == load(study="11k_vitb16").model and p.data.dataset == "11k"
    stage = p.stage2
    assert (stage.variant, stage.batch_size, stage.epochs, stage.lr) == ("finetuned", 32, 30, 5e-5)
    assert [loss.type for loss in stage.losses] == ["cross_entropy", "triplet", "center"]
    assert stage.resume_from.endswith("losscross_entropy.pth")
    assert (p.reports, stage.save_dir) == ("train_logs/", "saved_models/")
    with pytest.raises(ParamError, match=r"is for dorsal_r, but palmar_l was asked for"):
        load("palmar_l", str(file))
    file.write_text(USERS_STAGE_2.replace("epochs: 30", "epoch: 30"))
    with pytest.raises(ParamError, match=r"unknown parameter 'epoch'; did you mean"):
        load("dorsal_r", str(file))


def test_a_study_is_a_name_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert params.study_path("demo") == params.ROOT / "params/demo.yaml"
    assert params.study_path("params/demo.yaml") == params.ROOT / "params/demo.yaml"
    monkeypatch.chdir(tmp_path)
    assert params.study_path("params/demo.yaml") == params.ROOT / "params/demo.yaml"
    (tmp_path / "mine.yml").write_text("split: {seed: 2}")
    assert load(study="mine.yml").split.seed == 2
    with pytest.raises(ParamError, match=r"no study 'dmeo'; did you mean 'demo'\?"):
        params.study_path("dmeo")
    with pytest.raises(ParamError, match=r"no study file .*gone\.yaml"):
        params.study_path("gone.yaml")
    (tmp_path / "broken.yml").write_text("a: [")
    with pytest.raises(ParamError, match=r"broken\.yml is not valid YAML"):
        load(study="broken.yml")


def test_paths_start_at_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HANDS", str(tmp_path))
    assert params.resolve("data/11k") == params.ROOT / "data/11k"
    assert params.resolve("$HANDS/a") == tmp_path / "a"
    assert params.resolve("/abs") == Path("/abs")
    monkeypatch.setenv("HANDCLIP_CACHE", str(tmp_path / "cache"))
    assert params.cache_dir() == tmp_path / "cache"


# Fields of these branches may wait for the notebook that reads them, and no longer.
WAITING = {"stage1": "02_*.ipynb", "stage2": "03_*.ipynb", "experiment": "03_*.ipynb"}


def test_every_field_is_read() -> None:
    sources = list(_sources())
    dead = [
        f"{branch}.{field}".lstrip(".")
        for branch, node, field in _fields(Params, "")
        if not any(_reads(tree, branch, node, field) for tree in sources)
    ]
    waiting = {
        key for key, file in WAITING.items() if not any((params.ROOT / "notebooks").glob(file))
    }
    dead = [path for path in dead if path.split(".")[0] not in waiting]
    assert not dead, f"no module reads {', '.join(dead)}: remove the field, or use it"


@pytest.mark.parametrize(
    "source",
    [
        "p.data.drawn.persons",
        "told = p.data.drawn\nprint(told.persons)",
        "a, told = 1, p.data.drawn\nprint(told.persons)",
        "for told in (1, p.data.drawn):\n    print(told.persons)",
        "def draw(told: Drawn) -> int:\n    return told.persons",
        "def draw(told: 'Drawn | None') -> int:\n    return told.persons",
    ],
)
def test_a_read_field_is_seen_and_a_dead_one_too(source: str) -> None:
    tree = list(ast.walk(ast.parse(source)))
    assert _reads(tree, "data.drawn", "Drawn", "persons")
    assert not _reads(tree, "data.drawn", "Drawn", "shots")
    assert not _reads(tree, "split", "Split", "persons")
    written = list(ast.walk(ast.parse("told.drawn.persons = 3")))
    assert not _reads(written, "data.drawn", "Drawn", "persons")


def _fields(node: type[Node], branch: str) -> Iterator[tuple[str, str, str]]:
    """(branch, its class, field) of every leaf; a branch used elsewhere too counts as one."""
    for name, field in node.model_fields.items():
        kinds = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
        inner = [k for k in kinds if issubclass(k, Node)]
        if inner and inner[0].__name__.lower() == name:
            yield from _fields(inner[0], f"{branch}.{name}".lstrip("."))
        else:
            yield branch, node.__name__, name


def _sources() -> Iterator[list[ast.AST]]:
    """Every module but the schema, and every notebook's code."""
    for path in sorted((params.ROOT / "handclip_lib").rglob("*.py")):
        if path.name != "schema.py":
            yield list(ast.walk(ast.parse(path.read_text())))
    for path in sorted((params.ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        code = "".join(f"{''.join(c['source'])}\n" for c in cells if c["cell_type"] == "code")
        code = "\n".join(line for line in code.splitlines() if not line.startswith("%"))
        yield list(ast.walk(ast.parse(code)))


def _reads(tree: list[ast.AST], branch: str, node: str, field: str) -> bool:
    """Whether `field` is loaded from the branch, from a name for it, or from one of its class."""
    near = branch.split(".")[-1] or "p"
    owners = {near}
    for part in tree:
        if isinstance(part, ast.Assign):
            owners |= set(_names_for(part.targets[0], part.value, near))
        elif isinstance(part, ast.For | ast.comprehension) and isinstance(part.iter, ast.Tuple):
            for value in part.iter.elts:
                owners |= set(_names_for(part.target, value, near))
        elif isinstance(part, ast.arg) and part.annotation:
            said = ast.unparse(part.annotation)
            owners |= {part.arg} if re.search(rf"\b{node}\b", said) else set()
    return any(
        isinstance(part, ast.Attribute)
        and isinstance(part.ctx, ast.Load)
        and part.attr == field
        and getattr(part.value, "attr", getattr(part.value, "id", "")) in owners
        for part in tree
    )


def _names_for(target: ast.expr, value: ast.expr, near: str) -> Iterator[str]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, other in zip(target.elts, value.elts, strict=False):
            yield from _names_for(one, other, near)
    elif isinstance(target, ast.Name) and getattr(value, "attr", "") == near:
        yield target.id


@pytest.mark.parametrize("key", ["aspect", "study", "seed", "tag"])
def test_what_names_a_run_is_an_argument_and_never_an_override(key: str) -> None:
    with pytest.raises(ParamError, match=f"{key}: pass it as an argument"):
        load(overrides={key: "palmar_l"})


@pytest.mark.parametrize("line", ["seed: 5", "tag: mine", "study: other"])
def test_a_study_file_cannot_name_the_run(line: str, tmp_path: Path) -> None:
    study = tmp_path / "mine.yaml"
    study.write_text(line + "\n")
    with pytest.raises(ParamError, match="pass it as an argument of its own, not in mine.yaml"):
        load(study=str(study))


def test_a_model_may_be_one_word_in_a_study_and_in_overrides() -> None:
    assert load(overrides={"model": "rn50"}).model.name == "RN50-quickgelu"
    assert load(overrides={"model": "tiny_rn"}).model.pretrained == ""


def test_the_fabric_keeps_full_precision_and_the_seed() -> None:
    p = load(study="smoke", seed=3)
    make_fabric(p)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    first = torch.rand(3)
    make_fabric(p)
    assert torch.equal(first, torch.rand(3))
