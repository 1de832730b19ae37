"""Spoiled queries against a clean gallery: who is asked, what changes, who is left out."""

import dataclasses
from pathlib import Path

import lightning_fabric as lf
import numpy as np
import pandas as pd
import pytest
import torch
import toy_chain
import toy_hands
from toy_persons import drawn, people, unit

from handclip_lib.data import splits, tables
from handclip_lib.data.spoil import KINDS
from handclip_lib.data.store import open_store
from handclip_lib.device import make_fabric
from handclip_lib.evaluate import robustness
from handclip_lib.evaluate.embed import NAMES, embed, embed_pixels
from handclip_lib.evaluate.protocol import per_query
from handclip_lib.evaluate.retrieval import HEADLINE
from handclip_lib.evaluate.statistics import paired_test, person_bootstrap
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.report import robust, robust_plots
from handclip_lib.report.lineup import Contender
from handclip_lib.report.spaces import images_of, space_of
from handclip_lib.schema import Params

FEW = {name: KINDS[name] for name in ("darker", "mirrored", "wrist_cut")}


@pytest.fixture(scope="module")
def manifest() -> pd.DataFrame:
    return people(6, shots=4)


def answered(manifest: pd.DataFrame, noise: float, names=None, seed: int = 1) -> pd.DataFrame:
    """Answers where queries lie `noise` from where the gallery has them."""
    space = drawn(manifest, noise=0.3)
    asked = robustness.asked(manifest, 3)
    every = asked.loc[asked["split"] == "query", "image"].unique().tolist()
    names = every if names is None else names
    rng = np.random.default_rng(seed)
    z = unit(space.of(names) + rng.normal(0, 1e-9 + noise, (len(names), space.z.shape[1])))
    return robustness.answers(asked, space.of, names, z)


# --- who is asked -------------------------------------------------------------------------------


def test_few_photographs_of_each_person_ask_in_every_draw(manifest):
    asked = robustness.asked(manifest, 2)
    queries = asked[asked["split"] == "query"]
    assert set(queries.groupby("pid")["image"].nunique()) == {2}
    assert set(queries["draw"]) == {0, 1} and set(queries["pid"]) == set(range(6))
    gallery = manifest[manifest["split"] == "gallery"].reset_index(drop=True)
    kept = asked[asked["split"] == "gallery"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, gallery)
    known = manifest[manifest["split"] == "query"].merge(queries, how="inner")
    assert len(known) == len(queries)  # nothing asks in a draw that has it in the gallery


def test_whom_is_chosen_depends_on_names_alone(manifest):
    shuffled = manifest.sample(frac=1, random_state=3)
    chosen = [
        set(robustness.asked(m, 2).query("split == 'query'")["image"]) for m in (manifest, shuffled)
    ]
    assert chosen[0] == chosen[1]
    most = robustness.asked(manifest, 99)
    assert len(most[most["split"] == "query"]) == (manifest["split"] == "query").sum()


# --- answers ------------------------------------------------------------------------------------


def test_unspoiled_queries_answer_as_by_the_protocol(manifest):
    space = drawn(manifest)
    frame = answered(manifest, 0.0)
    asked = robustness.asked(manifest, 3)
    expected = per_query(drawn(manifest, noise=0.3).z, space.images, asked)
    pd.testing.assert_frame_equal(frame, expected)


def test_the_gallery_stays_clean_though_its_photographs_ask_in_another_draw(manifest):
    asked = robustness.asked(manifest, 3)
    queries = asked[asked["split"] == "query"].drop_duplicates("image")
    entries = set(asked.loc[asked["split"] == "gallery", "image"])
    assert entries & set(queries["image"])  # else there is nothing to confuse
    eye = np.eye(6, dtype=np.float32)
    of = dict(zip(manifest["image"], manifest["pid"], strict=True))
    seen: list[str] = []

    def gallery_of(names):
        seen.extend(names)
        return eye[[of[n] for n in names]]

    # every query is person 5: found first by that person's queries alone, were the gallery clean
    wrong = np.repeat(eye[5:], len(queries), axis=0)
    frame = robustness.answers(asked, gallery_of, queries["image"].tolist(), wrong)
    assert set(seen) == entries and len(seen) == len(entries)
    assert frame.groupby("pid")["rank1"].mean().to_dict() == {
        **dict.fromkeys(range(5), 0.0),
        5: 1.0,
    }
    assert set(frame["image"]) == set(queries["image"])


# --- scores -------------------------------------------------------------------------------------


def test_changes_are_those_of_a_paired_test(manifest):
    clean, frame = answered(manifest, 0.0), answered(manifest, 1.0)
    scores = robustness.level_scores(clean, frame, 10_000, seed=2)
    for metric, column in HEADLINE.items():
        test = paired_test(clean[column], frame[column], frame["pid"], seed=2)
        told = scores[metric]
        assert told["mean"] == pytest.approx(frame[column].mean())
        assert told["ci95"] == pytest.approx(
            person_bootstrap(frame[column], frame["pid"], 10_000, 2)
        )
        assert told["change"]["mean"] == pytest.approx(test["difference"])
        assert told["change"]["ci95"] == pytest.approx(test["ci95"])
    assert scores["map"]["change"]["mean"] < 0
    assert (scores["queries"], scores["persons"]) == (frame["image"].nunique(), 6)


def test_other_queries_are_refused(manifest):
    clean = answered(manifest, 0.0)
    for other in (clean.iloc[1:], clean.iloc[::-1]):
        with pytest.raises(ValueError, match="did not answer the same queries"):
            robustness.level_scores(clean, other)


def test_more_noise_is_found_less_often(manifest):
    frames = {k: answered(manifest, noise) for k, noise in enumerate((0.0, 0.5, 2.0, 50.0))}
    levels = robustness.curve(frames, 200)
    assert [told["level"] for told in levels] == [0, 1, 2, 3]
    means = [told["map"]["mean"] for told in levels]
    assert means == sorted(means, reverse=True) and means[3] < 0.7 < means[0]


def test_what_could_not_be_spoiled_counts_at_no_level(manifest):
    names = answered(manifest, 0.0)["image"].unique().tolist()
    some = names[:-3]
    levels = robustness.curve({0: answered(manifest, 0.0), 1: answered(manifest, 1.0, some)}, 100)
    assert {told["queries"] for told in levels} == {len(some)}
    clean = answered(manifest, 0.0)
    mean = clean.loc[clean["image"].isin(some), "ap"].mean()
    assert levels[0]["map"]["mean"] == pytest.approx(mean)


def test_a_hand_is_found_in_a_share_of_the_photographs_that_count(manifest):
    """One that could not be spoiled is not among them, nor does one count for each draw."""
    space, asked = drawn(manifest), robustness.asked(manifest, 3)
    names = asked.loc[asked["split"] == "query", "image"].unique().tolist()
    frames = {}
    for at, (some, lost) in enumerate([(names, names[-3:]), (names[:-3], names[:2])]):
        found = [name not in lost for name in some]
        frames[at] = robustness.answers(asked, space.of, some, space.of(some), found)
    clean, spoiled = robustness.curve(frames, 100)
    assert clean["hand_found"] == 1 and "hand_found" not in answered(manifest, 0.0)
    assert spoiled["hand_found"] == pytest.approx(1 - 2 / (len(names) - 3))


# --- through towers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def p(tmp_path_factory: pytest.TempPathFactory) -> Params:
    toy_hands.small_towers(tmp_path_factory.mktemp("configs"))
    csv = toy_chain.squares(tmp_path_factory.mktemp("hands"), persons=8)
    return toy_chain.told(csv, comparison={"spoiled_queries": 2})


@pytest.fixture(scope="module")
def table(p: Params) -> pd.DataFrame:
    return tables.read(p)


@pytest.fixture(scope="module")
def mine(p: Params, table: pd.DataFrame) -> pd.DataFrame:
    return splits.manifest_for(p, table)


@pytest.fixture
def fabric(p: Params) -> lf.Fabric:
    return make_fabric(p)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return load_encoder("toy-vit", "random", fit="squash")


@dataclasses.dataclass(frozen=True)
class Given(Contender):
    """A contender whose tower is at hand."""

    held: Encoder | None = None

    def encoder(self, p: Params) -> Encoder:
        assert self.held is not None
        return self.held


def asked_of(encoder, p, table, manifest, fabric):
    one = Given("toy", held=encoder)
    space = space_of(one, p, table, images_of(manifest), fabric)
    return robust.spoiled([one], {"toy": space}, manifest, table, p, fabric)["toy"]


def test_pixels_without_a_store_have_the_stores_features(encoder, p, table, fabric):
    store = open_store(table, encoder.preprocess)
    names = table["image"].tolist()[:9]
    rows = table.set_index("image", drop=False).loc[names]
    expected = embed(encoder, store, names, fabric, batch_size=4)
    found = embed_pixels(encoder, store.pixels(names).numpy(), rows, fabric, batch_size=4)
    for name in NAMES:
        assert np.array_equal(found[name], expected[name])
    with torch.no_grad():
        next(encoder.visual.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=f"not finite: {names[0]}"):
        embed_pixels(encoder, store.pixels(names).numpy(), rows, fabric)


def test_a_sheet_of_a_study(encoder, p, table, mine, fabric, monkeypatch, capsys):
    monkeypatch.setattr(robust, "KINDS", FEW)
    curves = asked_of(encoder, p, table, mine, fabric)
    assert list(curves) == ["darker", "mirrored"]
    assert "wrist cut off is left out" in capsys.readouterr().out  # squares have no wrist
    persons = mine.loc[mine["split"] == "query", "pid"].nunique()
    for kind, levels in curves.items():
        assert [told["level"] for told in levels] == list(range(len(KINDS[kind].levels) + 1))
        assert {told["persons"] for told in levels} == {persons}
        assert {told["queries"] for told in levels} == {2 * persons}
        assert all(told["hand_found"] == 1 for told in levels)  # nothing is looked for
    assert curves["darker"][0] == curves["mirrored"][0]
    assert curves["darker"][0]["rank1"]["change"]["mean"] == 0
    assert curves["darker"][4]["map"]["change"]["ci95"] != [0, 0]


def test_left_hands_are_mirrored_after_they_were_spoiled(p, table, fabric, monkeypatch):
    there = p.model_copy(update={"aspect": "dorsal_l"})
    manifest = splits.manifest_for(there, table)
    tower = load_encoder("toy-vit", "random", fit="squash", mirror_left=True)
    plain = load_encoder("toy-vit", "random", fit="squash")
    real, seen = robust.embed.embed_pixels, []

    def watching(encoder, pixels, *told):
        seen.append(pixels)
        return real(encoder, pixels, *told)

    monkeypatch.setattr(robust, "KINDS", {"mirrored": KINDS["mirrored"]})
    monkeypatch.setattr(robust.embed, "embed_pixels", watching)
    for encoder in (tower, plain):
        asked_of(encoder, there, table, manifest, fabric)
    of_tower, of_plain = seen[:2], seen[2:]
    for mirrored, usual in zip(of_tower, of_plain, strict=True):
        assert np.array_equal(mirrored, usual[:, :, ::-1])
    as_is, swapped = (pixels.astype(int) for pixels in of_plain)
    assert np.abs(swapped - as_is[:, :, ::-1]).max() <= 1 < np.abs(swapped - as_is).max()


# --- pictures -----------------------------------------------------------------------------------


def level(at: int, mean: float, change: tuple[float, float, float]) -> dict:
    score = {"mean": mean, "ci95": [mean - 0.1, mean + 0.1]}
    told = score | {"change": {"mean": change[0], "ci95": list(change[1:])}}
    return {"level": at, "rank1": told, "map": told, "queries": 9, "persons": 4, "hand_found": 0.5}


def curve(*changes: tuple[float, float, float]) -> list[dict]:
    return [level(at, 0.5 + c[0], c) for at, c in enumerate([(0.0, 0.0, 0.0), *changes])]


SURE, UNSURE = (-0.2, -0.3, -0.1), (-0.1, -0.2, 0.1)
CURVES = {
    "blur": curve(SURE, UNSURE, (-0.4, -0.5, -0.1), SURE),
    "darker": curve(UNSURE, UNSURE, UNSURE, UNSURE),
    "mirrored": curve(SURE),
}


def test_the_table_tells_from_where_a_loss_is_sure():
    table = robust_plots.change_table({"a": CURVES, "b": CURVES})
    assert table.index.tolist()[:3] == [("blur", "a"), ("blur", "b"), ("darker", "a")]
    of = table.loc[(slice(None), "a"), :].droplevel("model")
    assert of["sure from"].to_dict() == {"blur": "2", "darker": "–", "mirrored": "yes"}
    assert of.loc["darker", "largest loss (points)"] == "−10.0 [−20.0, +10.0] at −1"
    assert of.loc["mirrored", "largest loss (points)"] == "−20.0 [−30.0, −10.0]"
    assert of.loc["blur", "largest loss (points)"] == "−40.0 [−50.0, −10.0] at 2"
    assert of.loc["blur", "hand found (%)"] == "50"
    assert robust_plots.change_table({"a": {}}).empty


def test_curves_begin_with_the_photographs_as_they_are():
    worn = {"a": {"accessories": {"rank1": {"mean": 0.3, "ci95": [0.2, 0.4]}}}, "b": {}}
    fig = robust_plots.robustness_curves({"a": CURVES, "b": CURVES}, worn, "title")
    panels = [ax for ax in fig.axes if ax.axison]
    assert [ax.get_title(loc="left") for ax in panels] == ["blur", "darker", "of one level"]
    blur, _, single = panels
    assert [t.get_text() for t in blur.get_xticklabels()] == ["as is", "0.5", "1", "2", "4"]
    first = blur.get_lines()[0].get_ydata()
    assert np.allclose(first, [told["rank1"]["mean"] for told in CURVES["blur"]])
    names = ["as is", "mirrored", "with\naccessories"]
    assert [t.get_text() for t in single.get_xticklabels()] == names
    dots = [line for line in single.get_lines() if line.get_marker() == "o"]
    assert len(dots) == 3 + 2  # of b nothing is known with accessories
    assert blur.get_ylim() == single.get_ylim()
    few = [told | {"queries": 7} for told in CURVES["darker"]]
    alone = robust_plots.robustness_curves({"a": CURVES | {"darker": few}}, {}, "title")
    assert alone.axes[1].get_title(loc="left") == "darker (7 of 9)"
    last = [t.get_text() for t in [ax for ax in alone.axes if ax.axison][-1].get_xticklabels()]
    assert last == ["as is", "mirrored"]
    assert robust_plots.robustness_curves({"a": {}}, {}, "title")._supxlabel.get_text()


def test_the_photograph_is_shown_at_every_level(table, mine, tmp_path: Path):
    made = robust.examples(table, mine)
    assert list(made) == list(KINDS)
    assert made["wrist_cut"][1] is None and made["blur"][4] is not None
    fig = robust_plots.sheet(made, "title")
    shown = [ax for ax in fig.axes if ax.images]
    cut = sum(len(KINDS[kind].levels) for kind in ("fingers_cut", "wrist_cut"))
    assert len(shown) == 1 + sum(len(kind.levels) for kind in KINDS.values()) - cut
    fig.savefig(tmp_path / "sheet.png")
