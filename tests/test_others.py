"""Other data sets: who is asked there, what is lost on the way, what lies between two models."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import toy_chain
import toy_hands

from handclip_lib.data import splits, tables
from handclip_lib.data.check import source_of
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.protocol import evaluate, per_query
from handclip_lib.evaluate.scenarios import in_smaller_gallery
from handclip_lib.evaluate.statistics import paired_test
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.params import ParamError
from handclip_lib.report import others
from handclip_lib.report import others_plots as figures
from handclip_lib.report.groups import intervals
from handclip_lib.report.lineup import Contender
from handclip_lib.report.others import There, WiseFT, change, means
from handclip_lib.report.results import Finished, one_row_each, results
from handclip_lib.report.spaces import Space, images_of, space_of
from handclip_lib.report.summary import percent
from handclip_lib.schema import Params
from handclip_lib.schema_base import Model
from handclip_lib.train import stages
from handclip_lib.train.states import Task
from handclip_lib.train.taught import also_taught

FROZEN = Contender("zero_shot")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Params:
    toy_hands.small_towers(tmp_path_factory.mktemp("configs"))
    csv = toy_chain.squares(tmp_path_factory.mktemp("hands"))
    there = toy_chain.squares(tmp_path_factory.mktemp("there"), first=50, persons=8, seed=3)
    toy_chain.roughen(there)
    sets = {"right": {"root": str(there)}, "left": {"root": str(there), "aspect": "dorsal_l"}}
    return toy_chain.told(csv, comparison={"others": sets}, chain={"wise_ft": [0, 0.5, 1]})


@pytest.fixture(scope="module")
def places(study: Params) -> dict[str, Task]:
    table = tables.read(study)
    return others.places(study, table, splits.manifest_for(study, table), ("own",))


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
def spaces(places: dict[str, Task], tuned: Contender) -> dict[str, dict[str, Space]]:
    """{data set: {model: features}}."""
    return {
        name: {
            one.name: space_of(
                one, place.p, place.table, images_of(place.manifest), make_fabric(place.p)
            )
            for one in (FROZEN, tuned)
        }
        for name, place in places.items()
    }


def scored(space: Space, place: Task) -> dict:
    boots = place.p.evaluation.bootstrap, place.p.seed
    return evaluate(space.z, list(space.images), place.manifest, *boots)


def rows_of(space: Space, place: Task) -> pd.DataFrame:
    return per_query(space.z, list(space.images), place.manifest)


@pytest.fixture(scope="module")
def own(home: Task, spaces: dict[str, dict[str, Space]]) -> dict[str, dict]:
    return {name: scored(space, home) for name, space in spaces["home"].items()}


@pytest.fixture(scope="module")
def queries(home: Task, spaces: dict[str, dict[str, Space]]) -> dict[str, pd.DataFrame]:
    return {name: rows_of(space, home) for name, space in spaces["home"].items()}


@pytest.fixture(scope="module")
def there(
    study: Params, places: dict[str, Task], tuned: Contender, queries: dict[str, pd.DataFrame]
) -> dict[str, There]:
    return others.answered([FROZEN, tuned], places, queries, make_fabric(study))


@pytest.fixture(scope="module")
def wise(study: Params, places: dict[str, Task], tuned: Contender) -> WiseFT:
    return others.wise_ft(tuned, places, make_fabric(study))


# -- who is asked there ---------------------------------------------------------------------------


def test_the_other_set_is_tested_as_the_study_is(study, places):
    for name, aspect in {"right": "dorsal_r", "left": "dorsal_l"}.items():
        place = places[name]
        assert set(place.manifest["split"]) == {"query", "gallery"}
        assert set(place.manifest["aspect"]) == {aspect} and place.p.aspect == aspect
        whole = splits.manifest_for(place.p.model_copy(update={"split": study.split}), place.table)
        tested = whole[whole["split"].isin(("query", "gallery"))]
        pd.testing.assert_frame_equal(place.manifest, tested)
        assert place.manifest["pid"].between(54, 57).all()


def test_four_persons_are_enough_where_nobody_trains(tmp_path):
    few = toy_chain.squares(tmp_path / "few", first=90, persons=4)
    split = {"select": "persons", "legacy_tree": str(tmp_path / "of_home")}
    other = {"root": str(toy_chain.squares(tmp_path / "more", first=50, persons=4))}
    q = toy_chain.told(few, split=split, comparison={"others": {"few": other}})
    table = tables.read(q)  # as if it had come with a tree of folders
    assert others.places(q, table, table, ())["few"].manifest["pid"].nunique() == 2


def test_default_folders_are_told_apart(study, home, monkeypatch):
    """Without data.root each data set has its own: 11k beside HD is another, beside itself none."""
    read = []

    def folder(q):
        read.append(q.data.dataset)
        table = home.table.copy()
        table.attrs = {"root": f"data/{q.data.dataset}", "title": "t"}
        return table

    monkeypatch.setattr(others.tables, "read", folder)
    table = folder(study)
    table.attrs["root"] = "data/11k"
    data = study.data.model_copy(update={"dataset": "11k", "root": ""})
    more = {"there": {"dataset": "HD"}, "again": {"root": "data/11k"}}
    told = study.comparison.model_copy(update={"others": more})
    q = study.model_copy(update={"data": data, "comparison": told})
    with pytest.raises(ParamError, match="others.again: these are the study's own photographs"):
        others.places(q, table, home.manifest, ())
    assert read == ["own", "HD", "11k"]


@pytest.mark.parametrize(
    ("name", "told", "words"),
    [
        ("home", {"root": "elsewhere"}, "a test is called that"),
        ("own", {"root": "elsewhere"}, "a test is called that"),
        ("palms", {"aspect": "palmar_r"}, "these are the study's own"),
        ("link", {"root": "link"}, "these are the study's own"),
    ],
)
def test_a_data_set_has_a_name_and_photographs_of_its_own(study, home, tmp_path, name, told, words):
    (tmp_path / "link").symlink_to(study.data.root)
    told = told | ({"root": str(tmp_path / "link")} if name == "link" else {})
    more = study.comparison.model_copy(update={"others": {name: told}})
    q = study.model_copy(update={"comparison": more})
    with pytest.raises(ParamError, match=rf"comparison\.others\.{name}: {words}"):
        others.places(q, home.table, home.manifest, ("own", "all"))


def test_whoever_was_taught_a_person_there_is_left_out_by_name(
    study, places, tuned, queries, capsys
):
    fabric, two = make_fabric(study), {name: places[name] for name in ("home", "right")}
    knows = replace(tuned, taught=also_taught({}, places["right"].table, [51, 55, 56]))
    found = others.answered([FROZEN, knows], two, queries, fabric)["right"]
    said = capsys.readouterr().out
    assert said == "stage1 is left out of right: it was taught persons of it: 51, 55, 56\n"
    assert list(found.scores) == list(found.equal) == ["zero_shot"]
    assert found.left_out == {"stage1": [51, 55, 56]} and not found.tests  # without its reference
    assert list(others.wise_ft(knows, two, fabric).scores) == ["home"]
    elsewhere = replace(tuned, taught={f"own {source_of(places['right'].table).parent}": [55]})
    both = others.answered([elsewhere], two, queries, fabric)["right"]
    assert list(both.scores) == ["stage1"] and not both.left_out


# -- what is lost on the way ----------------------------------------------------------------------


def test_models_are_searched_in_the_gallery_there(places, spaces, there):
    assert list(there) == ["right", "left"]
    for name, told in there.items():
        of, place = spaces[name], places[name]
        assert told.scores == {model: scored(space, place)["own"] for model, space in of.items()}
        test = told.tests["map"]
        assert list(test) == ["zero_shot"]  # the reference, stage 1, is not tested against itself
        rows = {model: rows_of(space, place) for model, space in of.items()}
        expected = paired_test(rows["stage1"]["ap"], rows["zero_shot"]["ap"], rows["stage1"]["pid"])
        assert test["zero_shot"]["difference"] == expected["difference"]
    assert there["right"].scores != there["left"].scores
    assert there["right"].scores["stage1"]["persons"] == 4


def test_what_is_lost_is_of_galleries_of_one_size(study, home, queries, there):
    told = there["right"]
    assert told.size == 4  # of ten at home
    equal = told.equal["zero_shot"]["map"]
    at_home = in_smaller_gallery(queries["zero_shot"], home.manifest, 4)
    assert equal["home"] == means(at_home, study)["map"]
    assert equal["there"]["mean"] == pytest.approx(told.scores["zero_shot"]["map"]["mean"])
    assert equal["home"]["mean"] >= queries["zero_shot"]["ap"].mean()
    assert {k: equal[k] for k in ("difference", "ci95")} == change(equal["home"], equal["there"])


def test_a_change_has_the_interval_of_two_independent_means():
    home, there = {"mean": 0.8, "ci95": [0.7, 0.86]}, {"mean": 0.5, "ci95": [0.42, 0.6]}
    found = change(home, there)
    assert found["difference"] == pytest.approx(-0.3)
    low, high = found["ci95"]
    assert low == pytest.approx(-0.3 - (0.08**2 + 0.06**2) ** 0.5)  # worse there, better at home
    assert high == pytest.approx(-0.3 + (0.1**2 + 0.1**2) ** 0.5)


def test_tables_name_every_size_and_put_both_sides_into_a_row(places, there):
    sizes = figures.places_table(places)
    assert list(sizes.index) == ["home", "right", "left"]
    assert sizes["persons"].tolist() == [10, 4, 4]
    assert sizes["gallery entries"].tolist() == [10, 4, 4]
    assert sizes["queries of a draw"].tolist() == [30, 12, 12]
    table, lost = figures.there_table(there, "stage1"), figures.lost_table(there)
    for frame in (table, lost):
        assert list(frame.index) == [
            (place, model) for place in ("right", "left") for model in ("zero_shot", "stage1")
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


def test_without_another_data_set_it_says_so_in_a_line(study, home, own):
    bare = study.comparison.model_copy(update={"others": {}})
    q = study.model_copy(update={"comparison": bare})
    alone = others.places(q, home.table, home.manifest, ("own",))
    assert list(alone) == ["home"] and alone["home"].manifest is home.manifest
    assert others.answered([FROZEN], alone, {}, make_fabric(q)) == {}
    assert figures.there_table({}, "stage1").empty and figures.lost_table({}).empty
    assert others.by_place(own, {}) == {}


def test_the_figure_has_a_row_a_model_and_a_colour_a_data_set(own, there):
    less = there | {
        "left": replace(there["left"], scores={"stage1": there["left"].scores["stage1"]})
    }
    fig = intervals(others.by_place(own, less), "t")
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["home", "right", "left"]
    dots = [line for line in fig.axes[1].get_lines() if line.get_marker() == "o"]
    of_places = [
        scores["map"]["mean"]
        for place in ({m: of["own"] for m, of in own.items()}, *(t.scores for t in less.values()))
        for scores in place.values()
    ]
    assert [line.get_xdata()[0] for line in dots] == of_places and len(dots) == 5
    rows = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert rows == ["zero_shot", "stage1"]  # of galleries that differ, which is told in a table


# -- between the tower as it is and a model -------------------------------------------------------


def test_both_ends_are_the_models_themselves(places, spaces, wise):
    assert list(wise.scores) == ["home", "right", "left"]
    for name, of in wise.scores.items():
        assert list(of) == ["0", "0.5", "1"] and of["0"] != of["1"]
        for alpha, model in (("0", "zero_shot"), ("1", "stage1")):
            expected = scored(spaces[name][model], places[name])["own"]
            for metric in ("rank1", "map"):
                assert of[alpha][metric]["mean"] == pytest.approx(expected[metric]["mean"])
                assert of[alpha][metric]["ci95"] == pytest.approx(expected[metric]["ci95"])


def test_held_out_training_persons_choose_and_no_test(study, home, tuned, wise):
    assert set(home.manifest["split"]) >= {"select"}
    assert wise.chosen == max((0.0, 0.5, 1.0), key=lambda a: (wise.held[f"{a:g}"], a))
    swapped = home.manifest.copy()  # other test persons, the same held-out ones
    asked = swapped["split"] == "query"
    swapped.loc[asked, "pid"] = swapped.loc[asked, "pid"].iloc[::-1].to_numpy()
    again = others.wise_ft(tuned, {"home": replace(home, manifest=swapped)}, make_fabric(study))
    assert again.held == wise.held and again.chosen == wise.chosen
    assert again.scores["home"] != wise.scores["home"]


def test_without_held_out_persons_nothing_is_marked(study, home, tuned):
    nobody = home.manifest[home.manifest["split"] != "select"]
    alone = others.wise_ft(tuned, {"home": replace(home, manifest=nobody)}, make_fabric(study))
    assert alone.chosen is None and not alone.held and list(alone.scores) == ["home"]
    fig = figures.wise_curves(alone, "t")
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["home"] and "no training persons are held out" in title_of(fig)
    assert not [line for line in fig.axes[0].get_lines() if line.get_linestyle() == "--"]


def test_persons_whom_a_model_was_taught_choose_no_share_of_it(study, home, tuned, capsys):
    held = home.manifest.loc[home.manifest["split"] == "select", "pid"]
    knows = replace(tuned, taught=also_taught({}, home.table, held.tolist()[:1]))
    found = others.wise_ft(knows, {"home": home}, make_fabric(study))
    assert found.chosen is None and not found.held
    assert "was taught persons who are held out here" in capsys.readouterr().out


def test_the_figure_marks_the_alpha_and_the_sure_differences(wise):
    tests = {name: dict(of) for name, of in wise.tests.items()}
    tests["right"]["map"] = {
        alpha: test | {"holm": 0.01 if alpha == "0" else 0.9}
        for alpha, test in tests["right"]["map"].items()
    }
    fig = figures.wise_curves(replace(wise, tests=tests, chosen=0.5), "t")
    assert "α = 0.5, chosen by held-out training persons" in title_of(fig)
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["home", "right", "left", "held-out training persons"]
    lines = fig.axes[1].get_lines()
    assert [list(line.get_xdata()) for line in lines if line.get_linestyle() == "--"] == [[0.5] * 2]
    full = [line for line in lines if line.get_linestyle() == "None"]
    assert [list(line.get_xdata()) for line in full][1] == [0.0]


def title_of(fig) -> str:
    return str(fig.legends[0].get_title().get_text())


def test_where_nothing_lies_between_it_says_why(study, home, tuned):
    frozen = others.wise_ft(FROZEN, {"home": home}, make_fabric(study))
    assert "zero_shot was not trained here" in frozen.why and not frozen.scores
    assert figures.wise_curves(frozen, "t").get_supxlabel() == frozen.why
    wide = study.model_copy(update={"model": Model(name="toy-rn", pretrained="random")})
    other = others.wise_ft(tuned, {"home": replace(home, p=wide)}, make_fabric(study))
    assert other.why.startswith("stage1 has no weights between it and the study's tower: ")
    assert other.chosen is None and not other.tests


# -- what is kept ---------------------------------------------------------------------------------


def test_results_keep_the_data_sets_apart(own, there, wise):
    told = json.loads(json.dumps(others.kept(there, wise)))
    assert told["wise_ft"]["model"] == "stage1" and told["wise_ft"]["held"] == wise.held
    curve = told["wise_ft"]["scores"]["right"]
    assert curve["0.5"]["map"] == wise.scores["right"]["0.5"]["map"]
    assert told["abroad"]["left"]["equal"]["stage1"] == there["left"].equal["stage1"]
    assert told["abroad"]["left"]["size"] == 4 and not told["abroad"]["left"]["left_out"]
    head = {"study": "s", "seed": 0, "aspect": "dorsal_r", "notebook": "06", "tag": ""}
    metrics = head | {"data": "here", "variants": own, "manifest_sha256": "m"} | told
    run = Finished(Path(), metrics, {"git": {"commit": "c"}})
    rows = one_row_each([run])
    assert rows["variant"].tolist() == ["zero_shot", "stage1"]
    row = rows.iloc[1]
    assert row["map"] == own["stage1"]["own"]["map"]["mean"]
    assert row["on_left_map"] == there["left"].scores["stage1"]["map"]["mean"]
    assert row["on_left_map_low"] == there["left"].scores["stage1"]["map"]["ci95"][0]
    assert row["on_right_persons"] == 4
    numbers = results([run])  # of which the study's page is made: of its own data alone
    assert set(numbers["data"]) == {"here"} and set(numbers["gallery"]) == {"own", "all"}
