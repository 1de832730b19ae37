"""WiSE-FT of a study's model: its two ends are the models themselves, and the test chooses none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import toy_chain
import toy_hands

from handclip_lib.data import splits, tables
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.protocol import evaluate
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.report import abroad, between
from handclip_lib.report.between import Between
from handclip_lib.report.lineup import Contender
from handclip_lib.report.spaces import images_of, space_of
from handclip_lib.schema import Params
from handclip_lib.schema_base import Model
from handclip_lib.train import stages
from handclip_lib.train.states import Task


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Params:
    toy_hands.small_towers(tmp_path_factory.mktemp("configs"))
    csv = toy_chain.squares(tmp_path_factory.mktemp("hands"), persons=20)
    there = toy_chain.squares(tmp_path_factory.mktemp("abroad"), first=50, persons=20, seed=3)
    toy_chain.roughen(there)
    sets = {"abroad": {"root": str(there)}}
    return toy_chain.told(csv, comparison={"others": sets}, chain={"wise_ft": [0, 0.5, 1]})


@pytest.fixture(scope="module")
def places(study: Params) -> dict[str, Task]:
    table = tables.read(study)
    return abroad.places(study, table, splits.manifest_for(study, table), ())


@pytest.fixture(scope="module")
def home(places: dict[str, Task]) -> Task:
    return places["home"]


@pytest.fixture(scope="module")
def tuned(study: Params, home: Task, tmp_path_factory: pytest.TempPathFactory) -> Contender:
    folder = tmp_path_factory.mktemp("run")
    file = stages.stage1(study, home.table, home.manifest, folder).checkpoint
    held = read_checkpoint(file)
    tower = Model(name=str(file), pretrained="")
    return Contender("stage1", tower, weights=held["sha256"], taught=held["taught"])


@pytest.fixture(scope="module")
def found(study: Params, places: dict[str, Task], tuned: Contender) -> Between:
    return between.between(tuned, places, make_fabric(study))


def scored(one: Contender, place: Task, study: Params) -> dict:
    images = images_of(place.manifest)
    z = space_of(one, place.p, place.table, images, make_fabric(study)).z
    return evaluate(z, images, place.manifest, study.evaluation.bootstrap, study.seed)["own"]


def test_both_ends_are_the_models_themselves(study, places, tuned, found):
    assert list(found.scores) == ["home", "abroad"]
    for name, place in places.items():
        of = found.scores[name]
        assert list(of) == ["0", "0.5", "1"]
        for alpha, one in (("0", Contender("zero_shot")), ("1", tuned)):
            expected = scored(one, place, study)
            for metric in ("rank1", "map"):
                assert of[alpha][metric]["mean"] == pytest.approx(expected[metric]["mean"])
                assert of[alpha][metric]["ci95"] == pytest.approx(expected[metric]["ci95"])
        assert of["0"] != of["1"]


def test_held_out_training_persons_choose_and_no_test(home, tuned, found, study):
    assert set(home.manifest["split"]) >= {"select"}
    assert found.chosen == max((0.0, 0.5, 1.0), key=lambda a: (found.held[f"{a:g}"], a))
    swapped = home.manifest.copy()  # other test persons, the same held-out ones
    swapped.loc[swapped["split"] == "query", "pid"] = swapped.loc[
        swapped["split"] == "query", "pid"
    ].iloc[::-1].to_numpy()  # fmt: skip
    again = between.between(tuned, {"home": replace(home, manifest=swapped)}, make_fabric(study))
    assert again.held == found.held and again.chosen == found.chosen
    assert again.scores["home"] != found.scores["home"]


def test_without_held_out_persons_nothing_is_marked(home, tuned, study):
    nobody = home.manifest[home.manifest["split"] != "select"]
    alone = between.between(tuned, {"home": replace(home, manifest=nobody)}, make_fabric(study))
    assert alone.chosen is None and not alone.held and list(alone.scores) == ["home"]
    fig = between.wise_curves(alone, "t")
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["home"] and "no training persons are held out" in title_of(fig)
    assert not [line for line in fig.axes[0].get_lines() if line.get_linestyle() == "--"]


def test_the_figure_marks_the_alpha_and_the_sure_differences(found):
    tests = {name: dict(of) for name, of in found.tests.items()}
    sure = {alpha: test | {"holm": 0.01 if alpha == "0" else 0.9} for alpha, test in
            tests["abroad"]["map"].items()}  # fmt: skip
    tests["abroad"]["map"] = sure
    fig = between.wise_curves(replace(found, tests=tests, chosen=0.5), "t")
    assert "α = 0.5, chosen by held-out training persons" in title_of(fig)
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["home", "abroad", "held-out training persons"]
    lines = fig.axes[1].get_lines()
    assert [list(line.get_xdata()) for line in lines if line.get_linestyle() == "--"] == [[0.5] * 2]
    full = [line for line in lines if line.get_linestyle() == "None"]
    assert [list(line.get_xdata()) for line in full][1] == [0.0]


def title_of(fig) -> str:
    return str(fig.legends[0].get_title().get_text())


def test_a_data_set_that_taught_the_model_has_no_curve(study, places, tuned):
    root = Path(places["abroad"].table.attrs["root"]).resolve()
    knows = replace(tuned, taught={f"own {root}": [65]})
    assert list(between.between(knows, places, make_fabric(study)).scores) == ["home"]


def test_where_nothing_lies_between_it_says_why(study, home, tuned):
    frozen = between.between(Contender("zero_shot"), {"home": home}, make_fabric(study))
    assert "zero_shot was not trained here" in frozen.why and not frozen.scores
    assert between.wise_curves(frozen, "t").get_supxlabel() == frozen.why
    wide = study.model_copy(update={"model": Model(name="toy-rn", pretrained="random")})
    other = between.between(tuned, {"home": replace(home, p=wide)}, make_fabric(study))
    assert other.why.startswith("stage1 has no weights between it and the study's tower: ")
    assert other.chosen is None and not other.tests


def test_a_curve_can_be_written(found):
    told = json.loads(json.dumps(abroad.kept({}, found)))["wise_ft"]
    assert told["model"] == "stage1" and told["held"] == found.held
    assert told["scores"]["abroad"]["0.5"]["map"] == found.scores["abroad"]["0.5"]["map"]
    assert set(told["tests"]["home"]["rank1"]) == {"0", "0.5"}
