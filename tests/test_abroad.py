"""Other data sets: who is asked there, what is lost on the way, and how it is told."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toy_chain
import toy_hands

from handclip_lib.data import splits, tables
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.protocol import evaluate, per_query
from handclip_lib.evaluate.scenarios import in_smaller_gallery
from handclip_lib.evaluate.statistics import paired_test
from handclip_lib.params import ParamError
from handclip_lib.report import abroad
from handclip_lib.report.abroad import There, change
from handclip_lib.report.between import Between, means
from handclip_lib.report.lineup import Contender
from handclip_lib.report.results import Finished, one_row_each, results
from handclip_lib.report.spaces import images_of, space_of
from handclip_lib.report.summary import percent
from handclip_lib.schema import Params
from handclip_lib.schema_base import Model
from handclip_lib.train.states import Task

FROZEN = Contender("zero_shot")
OTHER = Contender("stage1", Model(name="toy-vit", pretrained="random", image_size=64))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Params:
    toy_hands.small_towers(tmp_path_factory.mktemp("configs"))
    csv = toy_chain.squares(tmp_path_factory.mktemp("hands"), persons=12)
    there = toy_chain.squares(tmp_path_factory.mktemp("abroad"), first=50, persons=8, seed=3)
    toy_chain.roughen(there)
    sets = {"abroad": {"root": str(there)}, "left": {"root": str(there), "aspect": "dorsal_l"}}
    return toy_chain.told(csv, comparison={"others": sets})


@pytest.fixture(scope="module")
def places(study: Params) -> dict[str, Task]:
    table = tables.read(study)
    manifest = splits.manifest_for(study, table)
    return abroad.places(study, table, manifest, ("own",))


@pytest.fixture(scope="module")
def home(places: dict[str, Task]) -> Task:
    return places["home"]


@pytest.fixture(scope="module")
def at_home(study: Params, home: Task) -> dict[str, np.ndarray]:
    fabric, images = make_fabric(study), images_of(home.manifest)
    return {m.name: space_of(m, study, home.table, images, fabric).z for m in (FROZEN, OTHER)}


@pytest.fixture(scope="module")
def own(study: Params, home: Task, at_home: dict[str, np.ndarray]) -> dict[str, dict]:
    told = images_of(home.manifest), home.manifest, study.evaluation.bootstrap, study.seed
    return {name: evaluate(z, *told) for name, z in at_home.items()}


@pytest.fixture(scope="module")
def queries(home: Task, at_home: dict[str, np.ndarray]) -> dict[str, pd.DataFrame]:
    images = images_of(home.manifest)
    return {name: per_query(z, images, home.manifest) for name, z in at_home.items()}


@pytest.fixture(scope="module")
def there(
    study: Params, places: dict[str, Task], queries: dict[str, pd.DataFrame]
) -> dict[str, There]:
    return abroad.answered([FROZEN, OTHER], places, queries, make_fabric(study))


def test_the_other_set_is_tested_as_the_study_is(study, places):
    for name, aspect in {"abroad": "dorsal_r", "left": "dorsal_l"}.items():
        place = places[name]
        assert set(place.manifest["split"]) == {"query", "gallery"}
        assert set(place.manifest["aspect"]) == {aspect} and place.p.aspect == aspect
        whole = splits.manifest_for(place.p.model_copy(update={"split": study.split}), place.table)
        tested = whole[whole["split"].isin(("query", "gallery"))]
        pd.testing.assert_frame_equal(place.manifest, tested)
        assert place.manifest["pid"].between(54, 57).all()


def test_four_persons_are_enough_where_nobody_trains(study, tmp_path):
    few = toy_chain.squares(tmp_path / "few", first=90, persons=4)
    split = {"select": "persons", "legacy_tree": str(tmp_path / "of_home")}
    other = {"root": str(few), "drawn": {"seed": 1}}  # told apart, but the same photographs
    q = toy_chain.told(few, split=split, comparison={"others": {"few": other}})
    table = tables.read(q)  # as if it had come with a tree of folders
    assert abroad.places(q, table, table, ())["few"].manifest["pid"].nunique() == 2


@pytest.mark.parametrize("name", ["home", "own"])
def test_a_data_set_has_a_name_of_its_own(study, home, name):
    more = study.comparison.model_copy(update={"others": {name: {"root": "elsewhere"}}})
    with pytest.raises(ParamError, match=rf"comparison\.others\.{name}: a test is called that"):
        q = study.model_copy(update={"comparison": more})
        abroad.places(q, home.table, home.manifest, ("own", "all"))


def test_a_study_is_no_other_data_set_of_its_own(study, home):
    more = study.comparison.model_copy(update={"others": {"palms": {"aspect": "palmar_r"}}})
    with pytest.raises(ParamError, match=r"comparison\.others\.palms: these are the study's own"):
        abroad.places(study.model_copy(update={"comparison": more}), home.table, home.manifest, ())


def test_models_are_searched_in_the_gallery_there(study, places, there):
    fabric = make_fabric(study)
    assert list(there) == ["abroad", "left"]
    for name in there:
        place = places[name]
        images = images_of(place.manifest)
        rows = {}
        for one in (FROZEN, OTHER):
            z = space_of(one, place.p, place.table, images, fabric).z
            expected = evaluate(z, images, place.manifest, study.evaluation.bootstrap, study.seed)
            assert there[name].scores[one.name] == expected["own"]
            rows[one.name] = per_query(z, images, place.manifest)
        test = there[name].tests["map"]
        assert list(test) == ["zero_shot"]  # the reference, stage 1, is not tested against itself
        expected = paired_test(rows["stage1"]["ap"], rows["zero_shot"]["ap"], rows["stage1"]["pid"])
        assert test["zero_shot"]["difference"] == expected["difference"]
    assert there["abroad"].scores != there["left"].scores
    assert there["abroad"].scores["stage1"]["persons"] == 4


def test_what_is_lost_is_of_galleries_of_one_size(study, places, queries, there):
    told = there["abroad"]
    assert told.size == 4  # of six at home
    equal = told.equal["zero_shot"]["map"]
    at_home = in_smaller_gallery(queries["zero_shot"], places["home"].manifest, 4)
    assert equal["home"] == means(at_home, study)["map"]
    assert equal["there"]["mean"] == pytest.approx(told.scores["zero_shot"]["map"]["mean"])
    assert equal["home"]["mean"] >= queries["zero_shot"]["ap"].mean()
    assert {key: equal[key] for key in ("difference", "ci95")} == change(
        equal["home"], equal["there"]
    )


def test_whoever_was_taught_a_person_there_is_left_out_by_name(study, places, queries, capsys):
    place, fabric = places["abroad"], make_fabric(study)
    two = {"home": places["home"], "abroad": place}
    root = Path(place.table.attrs["root"]).resolve()
    knows = replace(OTHER, taught={f"own {root}": [51, 55, 56]})
    found = abroad.answered([FROZEN, knows], two, queries, fabric)["abroad"]
    said = capsys.readouterr().out
    assert said == "stage1 is left out of abroad: it was taught persons of it: 51, 55, 56\n"
    assert list(found.scores) == list(found.equal) == ["zero_shot"]
    assert found.left_out == {"stage1": [51, 55, 56]} and not found.tests  # without its reference
    elsewhere = replace(OTHER, taught={f"own {root.parent}": [55]})
    both = abroad.answered([elsewhere], two, queries, fabric)["abroad"]
    assert list(both.scores) == ["stage1"] and not both.left_out


def test_a_change_has_the_interval_of_two_independent_means():
    home, there = {"mean": 0.8, "ci95": [0.7, 0.86]}, {"mean": 0.5, "ci95": [0.42, 0.6]}
    found = change(home, there)
    assert found["difference"] == pytest.approx(-0.3)
    low, high = found["ci95"]
    assert low == pytest.approx(-0.3 - np.sqrt(0.08**2 + 0.06**2))  # worse there, better at home
    assert high == pytest.approx(-0.3 + np.sqrt(0.1**2 + 0.1**2))


def test_of_normal_means_the_interval_is_the_usual_one():
    def score(mean: float, error: float) -> dict:
        return {"mean": mean, "ci95": [mean - 1.96 * error, mean + 1.96 * error]}

    low, high = change(score(0.6, 0.03), score(0.5, 0.04))["ci95"]
    assert [low, high] == pytest.approx([-0.1 - 1.96 * 0.05, -0.1 + 1.96 * 0.05])


def test_tables_name_every_size_and_put_both_sides_into_a_row(places, there):
    sizes = abroad.places_table(places)
    assert list(sizes.index) == ["home", "abroad", "left"]
    assert sizes["persons"].tolist() == [6, 4, 4] and sizes["gallery entries"].tolist() == [6, 4, 4]
    assert sizes["queries of a draw"].tolist() == [18, 12, 12]
    table, lost = abroad.there_table(there, "stage1"), abroad.lost_table(there)
    for frame in (table, lost):
        assert list(frame.index) == [
            (place, model) for place in ("abroad", "left") for model in ("zero_shot", "stage1")
        ]
    row, told = ("left", "zero_shot"), there["left"]
    assert table.loc[row, "mAP (%)"] == percent(told.scores["zero_shot"]["map"])
    test = told.tests["map"]["zero_shot"]
    assert number(table.loc[row, "mAP, above stage1"]) == points(test["difference"])
    assert table.loc[row, "mAP, p (Holm)"] == f"{test['holm']:.3f}"
    assert set(table.loc[("left", "stage1"), ["mAP, above stage1", "mAP, p (Holm)"]]) == {"–"}
    equal = told.equal["zero_shot"]["rank1"]
    assert lost.loc[row, "entries"] == "4"
    assert lost.loc[row, "rank-1, home (%)"] == percent(equal["home"])
    assert lost.loc[row, "rank-1, there (%)"] == percent(equal["there"])
    assert number(lost.loc[row, "rank-1, change (points)"]) == points(equal["difference"])


def number(text: str) -> float:
    return float(text.split(" ")[0].replace("−", "-"))


def points(share: float):
    return pytest.approx(100 * share, abs=0.051)


def test_without_another_data_set_it_says_so_in_a_line(own, home):
    bare = home.p.model_copy(
        update={"comparison": home.p.comparison.model_copy(update={"others": {}})}
    )
    alone = abroad.places(bare, home.table, home.manifest, ("own",))
    assert list(alone) == ["home"] and alone["home"].manifest is home.manifest
    assert abroad.answered([FROZEN], alone, {}, make_fabric(bare)) == {}
    assert abroad.there_table({}, "stage1").empty and abroad.lost_table({}).empty
    nothing = Between("stage1", {}, {}, {}, None, "why")
    assert not abroad.kept({}, nothing)["abroad"]
    fig = abroad.side_by_side(own, {}, "t")
    assert fig.get_supxlabel() == abroad.NONE
    assert list(abroad.places_table(alone).index) == ["home"]


def test_the_figure_has_a_row_a_model_and_a_colour_a_data_set(own, there):
    less = there | {
        "left": replace(there["left"], scores={"stage1": there["left"].scores["stage1"]})
    }
    fig = abroad.side_by_side(own, less, "t")
    ax = fig.axes[1]
    lines = {str(line.get_label()): line.get_xdata() for line in ax.get_lines()}
    dots = {name: x for name, x in lines.items() if name[0] != "_"}  # without the rows' edges
    assert list(dots) == ["home", "abroad", "left"] and [len(x) for x in dots.values()] == [2, 2, 1]
    assert dots["home"][1] == own["stage1"]["own"]["map"]["mean"]
    assert dots["abroad"][0] == there["abroad"].scores["zero_shot"]["map"]["mean"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["zero_shot", "stage1"]


def test_results_keep_both_data_sets_apart(own, there):
    nothing = Between("stage1", {}, {}, {}, None, "why")
    told = json.loads(json.dumps(abroad.kept(there, nothing)))["abroad"]
    assert told["left"]["equal"]["stage1"] == there["left"].equal["stage1"]
    assert told["left"]["size"] == 4 and not told["left"]["left_out"]
    head = {"study": "s", "seed": 0, "aspect": "dorsal_r", "notebook": "06", "tag": ""}
    metrics = head | {"data": "here", "variants": own, "abroad": told, "manifest_sha256": "m"}
    run = Finished(Path(), metrics, {"git": {"commit": "c"}})
    rows = one_row_each([run])
    assert rows["variant"].tolist() == ["zero_shot", "stage1"]
    row = rows.iloc[1]
    assert row["map"] == own["stage1"]["own"]["map"]["mean"]
    assert row["on_left_map"] == there["left"].scores["stage1"]["map"]["mean"]
    assert row["on_left_map_low"] == there["left"].scores["stage1"]["map"]["ci95"][0]
    assert row["on_abroad_persons"] == 4
    numbers = results([run])  # of which the study's page is made: of its own data alone
    assert set(numbers["data"]) == {"here"} and set(numbers["gallery"]) == {"own", "all"}
