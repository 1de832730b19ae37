"""Parameters: every study builds, every error says where, every field is read by something."""

import ast
import html
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
from handclip_lib.params import ParamError, load, stage2_variants
from handclip_lib.schema import Node, Params
from handclip_lib.schema_train import LossSpec

STUDIES = sorted(
    (f.stem, tag)
    for folder in (params.ROOT / "params", params.ROOT / "params" / "ablations")
    for f in folder.glob("*.yaml")
    for tag in ("", *params.read_study(str(f)).sweep)
)
SWEEPS = [(study, tag) for study, tag in STUDIES if tag]
LOSSES = sorted(f.stem for f in (params.ROOT / "params" / "losses").glob("*.yaml"))
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


@pytest.mark.parametrize(("study", "tag"), STUDIES)
def test_every_study_builds(study: str, tag: str) -> None:
    p = load("dorsal_r", study, tag=tag)
    assert (p.aspect, p.study, p.seed, p.tag) == ("dorsal_r", study, 0, tag)
    assert f" · study {study} · " in p.table().data.loc["this run"].item()
    first = params.study_path(study).read_text().splitlines()[0]
    assert first.startswith("# ") and len(first) > 20, f"{study}: its first line says what it is"


def test_no_two_files_of_params_share_a_name() -> None:
    parts = ("losses", "guided", "pretrain")
    found = (params.ROOT / "params").rglob("*.yaml")
    files = [f.stem for f in found if f.parent.name not in parts]
    assert len(files) == len(set(files)) and set(files) == {study for study, _ in STUDIES}


@pytest.mark.parametrize(("study", "tag"), SWEEPS)
def test_every_variant_of_a_sweep_changes_something(study: str, tag: str) -> None:
    plain, told = load(study=study), load(study=study, tag=tag)
    assert told != plain.model_copy(update={"tag": tag}), f"{study}: {tag} is the study itself"
    assert stage2_variants(plain).keys() == stage2_variants(told).keys(), (
        "rows that can be compared"
    )


def test_the_ablations_that_were_asked_for_are_there_and_name_their_notebooks() -> None:
    asked = "lr optimizer epochs image_size smoothing margin mining sampler flip unfreezing"
    folder = params.ROOT / "params" / "ablations"
    assert {f.stem for f in folder.glob("*.yaml")} >= {*asked.split(), "backbone"}
    for file in folder.glob("*.yaml"):
        told = params.read_study(str(file))
        assert told.sweep and told.notebooks
        books = ("02_stage1", "03_stage2_losses", "04_prompt_learning", "08_pretrain")
        assert set(told.notebooks) <= set(books)


def test_every_way_to_guide_is_a_file_that_builds() -> None:
    files = sorted((params.ROOT / "params" / "guided").glob("*.yaml"))
    names = [file.stem for file in files]
    asked = {
        "clip_reid",
        "no_text",
        "promptsg",
        "clip_handid",
        "vpt",
        "lora",
        "contrastive",
        "number",
        *("attn_channel", "attn_spatial", "attn_self", "pcb", "mgn", "jpm"),
    }
    assert asked <= set(names)
    told = params.guided_variants(load(overrides={"stage3b.variants": names}))
    assert list(told) == names and len({str(t) for t in told.values()}) == len(names)
    for file in files:
        assert file.read_text().startswith("# "), f"{file.stem}: its first line says what it is"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["vptt"], r"no guided 'vptt'; did you mean 'vpt'\?"),
        (
            {"x": {"adapt.promts": 3}},
            r"stage3b.variants.x: unknown parameter 'stage3b.adapt.promts'; did",
        ),
        ({"x": {"lr": "a"}}, r"stage3b.variants.x: stage3b.lr: .*valid number"),
        ({"x/y": {}}, r"stage3b.variants: 'x/y' becomes part of file names"),
    ],
)
def test_a_wrong_way_to_guide_is_said_at_once(told: object, words: str) -> None:
    with pytest.raises(params.ParamError, match=words):
        load(overrides={"stage3b.variants": told})


def test_variants_that_are_told_replace_those_of_the_study() -> None:
    told = load(study="smoke", overrides={"stage3b.variants": {"mine": {"text": "none"}}})
    assert list(params.guided_variants(told)) == ["mine"]


def test_the_ablations_follow_the_demo() -> None:
    demo = load(study="demo")
    twice = load(study="epochs", tag="epochs_x2")
    assert twice.stage1.epochs == 2 * demo.stage1.epochs
    rates = {load(study="lr", tag=tag).stage1.lr for tag in ("", *_sweep("lr"))}
    assert rates >= {1e-4, 5e-5, 1e-5, demo.stage1.lr}
    real = {load(study="lr_11k", tag=tag).stage1.lr for tag in ("", *_sweep("lr_11k"))}
    assert real == {1e-4, 5e-5, 1e-5}
    margins = [load(study="margin", tag=tag).stage2.losses[1] for tag in ("", *_sweep("margin"))]
    assert [(m.model_extra or {})["margin"] for m in margins] == [0.3, 0.2, 0.5, None]


def _sweep(study: str) -> dict[str, dict[str, object]]:
    return params.read_study(study).sweep


def test_the_study_of_several_seeds() -> None:
    file, p = params.read_study("demo_seeds"), load(study="demo_seeds")
    assert file.seeds == (0, 1, 2) and not file.sweep
    assert p.data.root == "data/drawn_seeds" and p.data.drawn.persons >= 96
    assert list(p.stage2.variants) == [
        *("ce", "ce_triplet", "ce_center", "ce_arcface"),
        *("ce_triplet_center", "ce_triplet_arcface", "ce_supcon", "mba", "mba_triplet"),
    ]
    assert set(p.stage2.variants) == set(LOSSES) and p.model == load(study="demo").model
    assert len(load(study="demo").stage2.variants) == 6


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_file_builds_its_losses(name: str) -> None:
    losses = pytest.importorskip("handclip_lib.losses")
    (settings,) = stage2_variants(load(overrides={"stage2.variants": [name]})).values()
    told, dims = settings.losses, {"penult": 8, "pool": 8, "proj": 4}
    if settings.tower == "comparator":
        dims |= {"global": 8, "spatial": 8, "channel": 8}
    criterion = losses.build_loss(told, 3, dims)
    z = {key: torch.randn(6, width) for key, width in dims.items()}
    terms = criterion(z, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert set(terms) == {spec.type for spec in told} == set(criterion.needs)
    first = "mba" if settings.tower == "comparator" else "ce"
    short = [first if spec.type == "cross_entropy" else spec.type for spec in told]
    assert "_".join(short) == name, "a file's name says its losses"
    if "arcface" in terms:
        assert criterion.needs["cross_entropy"] == ("pool_bn",)
        assert criterion.needs["arcface"] == ("proj_bn",)


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
    change = {"split.seed": 5, "stage1.losses": [{"type": "triplet", "margin": 0.2}]}
    p = load("palmar_l", "smoke", seed=3, tag="mine", overrides=change)
    table = p.table()
    rows = table.data.iloc[:, 0]
    assert rows["this run"] == "aspect palmar_l · study smoke · seed 3 · tag mine"
    assert rows["split"] == "mode person_disjoint · seed 5 · draws 3 · select persons"
    assert rows["stage1"].endswith(" · losses triplet (margin 0.2)")
    assert rows["comparison"].startswith("models tiny_rn · ") and "device" not in rows
    assert rows["stage2.variants.mba.augment"].startswith("degrees 0 · translate 0 · scale 1, 1 · ")
    page = table.to_html()  # whole, whatever pandas' own limits are
    assert all(html.escape(words) in page for words in rows) and "…" not in page


@pytest.mark.parametrize("name", ["ce", "ce_arcface", "ce_triplet", "ce_triplet_center"])
def test_the_users_four_stage_2_files_are_studies(name: str, tmp_path: Path) -> None:
    types = ["cross_entropy", *name.split("_")[1:]]
    lines = "".join(f"  - type: {one}\n" for one in types)
    text = re.sub(r"(?<=losses:\n)(  - .*\n)+", lines, USERS_STAGE_2)
    file = tmp_path / f"train_vitb16_11k_dorsal_r_{name}.yml"
    file.write_text(text.replace("_ce_triplet_center\n", f"_{name}\n"))
    p = load(study=str(file))
    assert {key: [loss.type for loss in v.losses] for key, v in stage2_variants(p).items()} == {
        name: types
    }
    assert p.aspect == "dorsal_r" and p.experiment == f"stage2_vitb16_11k_dorsal_r_{name}"
    assert p.stage2.save_dir == "saved_models/" and p.reports == "train_logs/"
    assert p.stage2.resume_from.startswith("saved_models/stage1_frozen_text_vitb16")
    file.write_text(text.replace("variant: finetuned", "variant: baseline"))
    assert load(study=str(file)).stage2.variant == "baseline"
    file.write_text("extends: 11k_vitb16\n" + text)
    extended = load(study=str(file))
    assert stage2_variants(extended).keys() == {name}, "the user's losses, not the study's variants"
    assert extended.baseline.beside == load(study="11k_vitb16").baseline.beside


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


def test_every_field_is_read() -> None:
    mentions: dict[str, list[list[ast.AST]]] = {}
    for tree in _sources():
        for name in {part.attr for part in tree if isinstance(part, ast.Attribute)}:
            mentions.setdefault(name, []).append(tree)
    dead = [
        f"{branch}.{field}".lstrip(".")
        for branch, nodes, field in [*_fields(Params, ""), *_fields(LossSpec, "spec")]
        if not any(
            _reads(tree, branch, node, field) for node in nodes for tree in mentions.get(field, ())
        )
    ]
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
        "class Draw:\n    told: Drawn\n    def all(self):\n        return self.told.persons",
    ],
)
def test_a_read_field_is_seen_and_a_dead_one_too(source: str) -> None:
    tree = list(ast.walk(ast.parse(source)))
    assert _reads(tree, "data.drawn", "Drawn", "persons")
    assert not _reads(tree, "data.drawn", "Drawn", "shots")
    assert not _reads(tree, "split", "Split", "persons")
    written = list(ast.walk(ast.parse("told.drawn.persons = 3")))
    assert not _reads(written, "data.drawn", "Drawn", "persons")


def test_a_field_that_branches_share_may_be_read_by_the_name_of_what_they_share() -> None:
    told = {(b, f): names for b, names, f in _fields(Params, "")}
    assert told["stage1", "lr"] == ["Stage1", "Training", "Loop"]
    assert told["stage2", "resume_from"] == ["Stage2"], "no other stage has it"
    assert ("stage2.augment", "flip") in told and ("stage1.gradual", "every") in told


def _fields(node: type[Node], branch: str) -> Iterator[tuple[str, list[str], str]]:
    """(branch, its class and those that it has the field from, field) of every leaf.

    A branch used elsewhere too counts as one.
    """
    for name, field in node.model_fields.items():
        kinds = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
        inner = [k for k in kinds if issubclass(k, Node)]
        if inner and inner[0].__name__.lower() == name:
            yield from _fields(inner[0], f"{branch}.{name}".lstrip("."))
        else:
            classes = [c for c in node.__mro__ if issubclass(c, Node) and name in c.model_fields]
            yield branch, [c.__name__ for c in classes], name


def _sources() -> Iterator[list[ast.AST]]:
    """Every module but the schemas, and every notebook's code."""
    for path in sorted((params.ROOT / "handclip_lib").rglob("*.py")):
        if not path.name.startswith("schema"):
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
        elif isinstance(part, ast.arg | ast.AnnAssign) and part.annotation:
            said = ast.unparse(part.annotation)
            name = part.arg if isinstance(part, ast.arg) else ast.unparse(part.target)
            owners |= {name} if re.search(rf"\b{node}\b", said) else set()
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


def _studies(folder: Path, **texts: str) -> str:
    """Study files beside each other; the path of the first."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{next(iter(texts))}.yaml")


def test_a_study_extends_another_and_wins(tmp_path: Path) -> None:
    study = _studies(
        tmp_path,
        mine="extends: middle.yaml\nstage1: {epochs: 3}\nbaseline.projections: [pca]",
        middle="extends: smoke\nstage1: {epochs: 7, lr: 2e-4}\naspect: palmar_l",
    )
    p, smoke = load(study=study), load(study="smoke")
    assert (p.study, p.aspect) == ("mine", "palmar_l")
    assert (p.stage1.epochs, p.stage1.lr) == (3, 2e-4), "the nearest says it last"
    assert p.baseline.projections == ("pca",), "a list replaces"
    assert p.data == smoke.data and p.baseline.beside == smoke.baseline.beside
    assert load(study=study, overrides={"stage1.epochs": 5}).stage1.epochs == 5
    assert params.own_aspect(study) == "palmar_l"


def test_a_relative_extends_counts_from_the_file_then_from_the_project(tmp_path: Path) -> None:
    study = _studies(tmp_path, mine="extends: ./other.yaml", other="extends: params/smoke.yaml")
    assert load(study=study).data == load(study="smoke").data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: mine.yaml", r"extends: mine\.yaml → mine\.yaml goes in a circle"),
        ("extends: other.yaml", r"mine\.yaml → other\.yaml → mine\.yaml goes in a circle"),
        ("extends: dmeo", r"mine\.yaml, extends: no study 'dmeo'; did you mean 'demo'\?"),
        ("extends: gone.yaml", r"mine\.yaml, extends: no study file .*gone\.yaml"),
        ("sweep: [a]", r"sweep: mine\.yaml must give \{variant: \{parameter: value\}\}"),
        ("sweep: {a: {}}", r"sweep: mine\.yaml must give"),
        ("sweep: {a: {seed: 1}}", r"seed: pass it .* not in sweep\.a of mine\.yaml"),
        ("seeds: 3", r"seeds: mine\.yaml must give a list of int, got 3"),
        ("seeds: [true]", r"seeds: mine\.yaml must give a list of int"),
        ("notebooks: 02_stage1", r"notebooks: mine\.yaml must give a list of str"),
        ("sweeps: {a: {stage1.lr: 1}}", r"'sweeps'; did you mean 'sweep'\?"),
    ],
)
def test_a_bad_study_file_says_where(text: str, message: str, tmp_path: Path) -> None:
    study = _studies(tmp_path, mine=text, other="extends: mine.yaml")
    with pytest.raises(ParamError, match=message):
        load(study=study)


def test_a_key_of_the_file_is_no_parameter() -> None:
    with pytest.raises(ParamError, match="sweep: belongs at the top of a study file"):
        load(overrides={"sweep": {"a": {"stage1.lr": 1}}})


def test_a_tag_names_a_variant_of_the_sweep(tmp_path: Path) -> None:
    study = _studies(
        tmp_path,
        mine="extends: smoke\nsweep:\n  fast: {stage1.lr: 1e-2}\n  0.5: {stage2: {lr: 0.5}}",
        child="extends: mine.yaml\nstage1.epochs: 9",
        alone="extends: mine.yaml\nsweep: {slow: {stage1.lr: 1e-6}}",
    )
    plain = load(study=study)
    assert plain.stage1.lr == load(study="smoke").stage1.lr and plain.tag == ""
    assert load(study=study, tag="fast").stage1.lr == 1e-2
    assert load(study=study, tag="0.5").stage2.lr == 0.5
    assert load(study=study, tag="fast", overrides={"stage1.lr": 0.3}).stage1.lr == 0.3
    assert load(study=study, tag="mine", overrides={"stage1.lr": 0.3}).tag == "mine"
    with pytest.raises(ParamError, match=r"tag: study 'mine' has no variant 'fst'.*mean 'fast'\?"):
        load(study=study, tag="fst")
    child = load(study=str(tmp_path / "child.yaml"), tag="fast")
    assert (child.stage1.epochs, child.stage1.lr) == (9, 1e-2), "a sweep is extended, too"
    assert list(params.read_study(str(tmp_path / "alone.yaml")).sweep) == ["slow"]


def test_variants_are_names_of_loss_files_or_lists(tmp_path: Path) -> None:
    p = load(study="smoke", overrides={"stage2.variants": ["ce_triplet", "ce"]})
    assert list(p.stage2.variants) == ["ce_triplet", "ce"]
    losses = stage2_variants(p)["ce_triplet"].losses
    assert [spec.type for spec in losses] == ["cross_entropy", "triplet"]
    mine = {"mine": [{"type": "triplet", "weight": 2}]}
    p = load(study="smoke", overrides={"stage2": {"variants": mine}})
    (told,) = stage2_variants(p).values()
    assert list(p.stage2.variants) == ["mine"] and told.losses[0].weight == 2
    assert told == p.stage2.model_copy(update={"losses": told.losses, "variants": {}})
    assert list(load(study="smoke", overrides="stage2.variants: ce").stage2.variants) == ["ce"]
    with pytest.raises(ParamError, match=r"no losses 'ce_tripet'; did you mean 'ce_triplet'\?"):
        load(overrides={"stage2.variants": ["ce_tripet"]})
    with pytest.raises(ParamError, match=r"stage2\.variants: 'a/b' becomes part of file names"):
        load(overrides={"stage2": {"variants": {"a/b": [{"type": "triplet"}]}}})
    study = _studies(tmp_path, child="extends: smoke\nstage2: {variants: {own: [{type: center}]}}")
    assert list(load(study=study).stage2.variants) == ["own"], "they replace the study's"


def test_a_variant_may_say_more_than_its_losses() -> None:
    own = {"slow": {"extends": "ce_triplet", "lr": "1e-7", "sampler.images": 2}}
    for told in ([{"ce_triplet": {"lr": 1e-7, "sampler": {"images": 2}}}], own):
        p = load(study="smoke", overrides={"stage2": {"variants": told}})
        (found,) = stage2_variants(p).values()
        assert (found.lr, found.sampler.images, found.sampler.type) == (1e-7, 2, "pk")
        assert [loss.type for loss in found.losses] == ["cross_entropy", "triplet"]
        assert found.epochs == p.stage2.epochs
    (mba,) = stage2_variants(load(study="smoke", overrides={"stage2.variants": ["mba"]})).values()
    assert (mba.tower, mba.optimizer, mba.sampler.type) == ("comparator", "adam", "shuffle")


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"x": {"lrate": 1}}, r"stage2\.variants\.x: unknown parameter 'stage2\.lrate'; did .*lr'"),
        (
            {"x": {"losses": [{"type": "triplet", "weight": -1}]}},
            r"stage2\.variants\.x: .*losses\.0",
        ),
        ({"x": {"save_dir": "a"}}, r"stage2\.variants\.x\.save_dir: belongs to stage 2"),
        ({"x": {"extends": "mbb"}}, r"stage2\.variants: no losses 'mbb'; did you mean 'mba'"),
        ([{"ce": 3}], r"stage2\.variants: expected a name"),
        ([{"mba": {"tower": "cnn"}}], r"stage2\.variants\.mba: .*'study' or 'comparator'"),
    ],
)
def test_a_variant_that_cannot_be_is_refused_with_its_place(told: object, words: str) -> None:
    with pytest.raises(ParamError, match=words):
        load(study="smoke", overrides={"stage2": {"variants": told}})


def test_losses_take_the_place_of_variants_from_beneath(tmp_path: Path) -> None:
    mine = [{"type": "cross_entropy"}, {"type": "pml", "name": "CircleLoss"}]
    p = load(study="smoke", overrides={"stage2.losses": mine})
    assert p.stage2.variants == {} and list(stage2_variants(p)) == ["ce_CircleLoss"]
    study = _studies(
        tmp_path,
        child="extends: smoke\nstage2.losses: [{type: center}]\nsweep: {a: {stage2.lr: 0.1},"
        " b: {stage2.variants: [ce]}}",
    )
    assert list(stage2_variants(load(study=study))) == ["center"]
    assert list(stage2_variants(load(study=study, tag="a"))) == ["center"]
    assert list(stage2_variants(load(study=study, tag="b"))) == ["ce"]
    both = {"losses": mine, "variants": ["ce"]}
    with pytest.raises(ParamError, match="stage2: overrides gives both losses and variants"):
        load(overrides={"stage2": both})
    study = _studies(tmp_path, both="losses: [{type: triplet}]\nstage2: {variants: [ce]}")
    with pytest.raises(ParamError, match=r"stage2: both\.yaml gives both"):
        load(study=study)


def test_the_features_of_a_loss_survive_yamls_on(tmp_path: Path) -> None:
    assert yaml.safe_load("on: 1") == {True: 1}  # what YAML 1.1 makes of it
    line = "[{type: triplet, on: [pool]}]"
    study = _studies(tmp_path, mine=f"stage2: {{variants: {{a: {line}}}}}")
    assert stage2_variants(load(study=study))["a"].losses[0].on == ("pool",)
    told = {"stage2.losses": yaml.safe_load(line)}  # as --set reads it
    assert load(overrides=told).stage2.losses[0].on == ("pool",)


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


def test_an_empty_value_is_an_empty_text():
    assert params.load(overrides="model.pretrained:").model.pretrained == ""
    with pytest.raises(params.ParamError, match="model.name"):
        params.load(overrides="model.name:")


def test_a_branch_told_in_part_keeps_its_stages_defaults():
    told = params.load(overrides={"stage2.sampler.images": 2}).stage2.sampler
    assert (told.type, told.images) == ("pk", 2)
    assert params.load(overrides={"stage1.sampler.images": 2}).stage1.sampler.type == "shuffle"
