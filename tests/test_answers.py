"""What notebook 06 asks: pairs, evidence or why not, plain values kept."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toy_chain
import toy_hands
from toy_persons import drawn, people

from handclip_lib.data import splits, tables
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.calibration import fit_logistic
from handclip_lib.evaluate.expansion import fit_whitening, whiten
from handclip_lib.evaluate.explanation import CAM, ROLLOUT, Look, look
from handclip_lib.evaluate.pairs import distinct, pairs_of
from handclip_lib.evaluate.protocol import evaluate
from handclip_lib.evaluate.scenarios import evaluate_all, scenarios
from handclip_lib.evaluate.verification import verification_metrics
from handclip_lib.models.checkpoint import save_checkpoint
from handclip_lib.models.clip import load_comparator
from handclip_lib.report import answers
from handclip_lib.report.explain import hand_table
from handclip_lib.report.lineup import Contender
from handclip_lib.report.runs import open_run
from handclip_lib.report.spaces import Space, images_of, space_of
from handclip_lib.schema import Comparator, Params
from handclip_lib.schema_base import Model

MODEL = Contender("m")
TABLE = pd.DataFrame({"dataset": ["HD"]})  # whose persons numbers count


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    toy_hands.small_towers(tmp_path_factory.mktemp("configs"))
    return toy_chain.squares(tmp_path_factory.mktemp("hands"), persons=12)


@pytest.fixture(scope="module")
def p(csv: Path) -> Params:
    few = {"reranking": [{"k1": 3, "k2": 2}], "expand": 1, "folds": 3, "photographs": 2}
    return toy_chain.told(csv, comparison=few)


@pytest.fixture(scope="module")
def table(p: Params) -> pd.DataFrame:
    return tables.read(p)


@pytest.fixture(scope="module")
def manifest(p: Params, table: pd.DataFrame) -> pd.DataFrame:
    return splits.manifest_for(p, table)


@pytest.fixture(scope="module")
def spaces(manifest: pd.DataFrame) -> dict[str, Space]:
    return {"m": drawn(manifest)}


# --- verification -------------------------------------------------------------------------------


def test_two_photographs_are_compared_once(p):
    manifest = people(4)
    space = drawn(manifest)
    found = answers.verified([MODEL], {"m": space}, manifest, p)
    pairs = found.pairs["m"]
    every = pairs_of(space.z, space.images, manifest)
    both = {frozenset(pair) for pair in zip(every["query"], every["gallery"], strict=True)}
    assert len(pairs) == len(both) < len(every)
    pd.testing.assert_frame_equal(pairs, distinct(every))
    expected = verification_metrics(pairs["similarity"], pairs["genuine"])
    assert found.rates["m"]["eer"] == expected["eer"] and found.spans["m"]["persons"] == 4
    assert list(found.kinds["m"]) == ["same hand", "other person"]
    assert sum(map(len, found.kinds["m"].values())) == len(pairs)


def evidence_of(count: int, p: Params) -> tuple[dict, dict, pd.DataFrame]:
    manifest = people(count)
    found = answers.verified([MODEL], {"m": drawn(manifest)}, manifest, p)
    return *answers.evidence(found, "toys", folds=3), found.pairs["m"]


def test_evidence_needs_persons(p):
    worth, ratios, _ = evidence_of(6, p)
    assert not ratios and worth["m"]["cllr"] is None
    assert "persons with genuine pairs" in worth["m"]["withheld"]
    worth, ratios, pairs = evidence_of(24, p)
    genuine, impostor = ratios["m"]
    assert not worth["m"]["withheld"] and 0 < worth["m"]["cllr"] < 1
    assert (len(genuine), len(impostor)) == (pairs["genuine"].sum(), (~pairs["genuine"]).sum())
    assert np.median(genuine) > 0 > np.median(impostor)


def test_a_calibration_for_others_is_kept_with_what_made_the_features(p):
    manifest = people(24)
    space = replace(drawn(manifest), made_by={"weights_sha256": "ab", "feature": ["pool"]})
    found = answers.verified([MODEL], {"m": space}, manifest, p)
    worth, _ = answers.evidence(found, "toys", folds=3)
    kept, pairs = json.loads(json.dumps(worth["m"]["calibration"])), found.pairs["m"]
    whole = fit_logistic(pairs["similarity"], pairs["genuine"], pairs["query_person"], "toys")
    assert {key: kept[key] for key in asdict(whole)} == asdict(whole)
    assert kept["scores"] == [pairs["similarity"].min(), pairs["similarity"].max()]
    assert kept["weights_sha256"] == "ab" and kept["feature"] == ["pool"]


# --- rankings -----------------------------------------------------------------------------------


def test_every_way_to_rank(p, manifest, spaces, table, monkeypatch):
    space, flipped = spaces["m"], drawn(manifest, seed=7)

    def faked(one, q, photographs, images, fabric, flipped_too) -> Space:
        assert (one, q, photographs is table, flipped_too) == (MODEL, p, True, True)
        return Space(tuple(images), flipped.of(images))

    monkeypatch.setattr(answers, "space_of", lambda *told, flipped=False: faked(*told, flipped))
    found = answers.ranked(MODEL, space, manifest, table, p, make_fabric(p))
    names = ["cosine", "re-ranked 3/2", "re-ranked 3/2, one by one", "query expansion 1",
             "query expansion 1, alpha 3", "gallery augmented 1, alpha 3", "flipped, added",
             "whitened"]  # fmt: skip
    assert list(found) == names
    told = list(space.images), manifest, p.evaluation.bootstrap, p.seed
    assert found["cosine"] == evaluate(space.z, *told)
    assert found["flipped, added"] == evaluate(flipped.z, *told) != found["cosine"]
    training = space.of(manifest.loc[manifest["split"] == "train", "image"])
    expected = evaluate(whiten(space.z, fit_whitening(training)), *told)
    assert found["whitened"] == expected
    whole = evaluate(whiten(space.z, fit_whitening(space.z)), *told)
    assert expected != whole


def test_some_persons_are_strangers(p, manifest, spaces):
    found, spans = answers.open_set([MODEL], spaces, manifest, p)
    asked = (manifest["split"] == "query").sum()
    assert found["m"]["n_mated"] + found["m"]["n_non_mated"] == asked
    assert found["m"]["n_non_mated"] > 0 and len(spans["m"]["rank1"]) == 2


# --- explanations, and what is kept -------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Contender]:
    torch.manual_seed(0)
    mba = load_comparator(Comparator(backbone="tiny_rn", pretrained="", image_size=64))
    path = tmp_path_factory.mktemp("kept") / "mba.pth"
    save_checkpoint(path, mba, {}, "", "k", {"taught": {}})
    return [Contender("zero_shot"), Contender("mba", Model(name=str(path), pretrained=""))]


@pytest.fixture(scope="module")
def shown(p, table, manifest, models):
    fabric, names = make_fabric(p), images_of(manifest)
    spaces = {one.name: space_of(one, p, table, names, fabric) for one in models}
    return spaces, answers.explained(models, spaces, table, manifest, p, fabric)


def test_each_person_is_explained_once(manifest, shown):
    _, found = shown
    first = manifest[(manifest["draw"] == 0) & (manifest["split"] == "query")]
    vit, mba = found["zero_shot"], found["mba"]
    assert vit.persons == tuple(sorted(set(first["pid"])))
    expected = first.sort_values("image").drop_duplicates("pid").set_index("pid")["image"]
    assert vit.images == mba.images == tuple(expected.loc[list(vit.persons)])
    assert set(vit.maps) == {ROLLOUT, CAM} and not vit.left_out
    assert vit.pixels.shape == (len(vit.images), 32, 32, 3)


def test_a_pair_is_of_one_person_and_may_be_closed(p, table, manifest, models, shown, monkeypatch):
    spaces, _ = shown
    fabric, first = make_fabric(p), manifest[manifest["draw"] == 0]
    asked = []

    def looking(encoder, store, images, *others) -> Look:
        asked.append(images)
        return look(encoder, store, images, *others)

    def facing(*_) -> None:
        raise TypeError("no maps")

    vit, mba = (
        answers.one_pair(one, spaces[one.name], table, manifest, p, fabric) for one in models
    )
    assert vit.facing[0].shape == (2, 32, 32, 3) and set(vit.alike) == {ROLLOUT, CAM}
    assert mba.facing is not None and set(mba.alike) == {CAM} and not mba.why
    monkeypatch.setattr(answers, "look", looking)
    monkeypatch.setattr(answers, "faced", facing)
    told = answers.one_pair(models[0], spaces["zero_shot"], table, manifest, p, fabric)
    assert (told.facing, told.alike, told.why) == (None, None, "zero_shot: no maps")
    query, entry = (first[first["image"] == image] for image in asked[0])
    assert set(query["split"]) == {"query"} and "gallery" in set(entry["split"])
    assert (
        set(query["pid"])
        == set(entry["pid"])
        == {first.loc[first["split"] == "query", "pid"].min()}
    )


def test_a_tower_without_attention_says_so_and_has_a_row(shown):
    _, found = shown
    mba = found["mba"]
    assert set(mba.left_out) == {ROLLOUT} and set(mba.maps) == {CAM} == set(mba.blanked)
    assert len(mba.left_out[ROLLOUT]) > 10
    told = hand_table(found)
    assert list(told.index) == [("zero_shot", ROLLOUT), ("zero_shot", CAM), ("mba", CAM),
                                ("mba", ROLLOUT)]  # fmt: skip
    assert told.loc[("mba", ROLLOUT), "note"] == mba.left_out[ROLLOUT]
    assert told.loc[("mba", CAM), "top less random"].count("[") == 1


def test_what_is_kept_can_be_written(p, table, manifest, models, shown, tmp_path, monkeypatch):
    monkeypatch.setenv("HANDCLIP_REPORTS", str(tmp_path))
    spaces, explained = shown
    asked = scenarios({p.aspect: manifest}, p.aspect, table)
    found = answers.verified(models, spaces, manifest, p)
    strangers, _ = answers.open_set(models, spaces, manifest, p)
    worth, _ = answers.evidence(found, "toys", p.comparison.folds)
    scores = {name: evaluate(s.z, s.images, manifest, 100) for name, s in spaces.items()}
    fabric = make_fabric(p)
    ranked = {"mba": answers.ranked(models[1], spaces["mba"], manifest, table, p, fabric)}
    kept = answers.kept(
        {n: evaluate_all(s.of, asked, 100) for n, s in spaces.items()}, ranked, found, {}, worth,
        strangers, {}, {}, explained,
    )  # fmt: skip
    run = open_run("06_eval_rerank", p)
    run.save({"data": "squares", "variants": scores, **kept})
    back = json.loads((run.folder / "metrics.json").read_text())
    assert set(kept) <= set(back)
    told = back["verification"]["mba"]
    assert {"eer", "auc", "ci95"} <= set(told) and "thresholds" not in told
    assert all(isinstance(v, int | float) for v in told["ci95"]["eer"])
    assert not {"thresholds", "fpir"} & set(back["open_set"]["mba"])
    assert set(back["explanation"]["mba"]) == {"blanked", "left_out", "on_hand"}
    assert back["explanation"]["mba"]["left_out"] == dict(explained["mba"].left_out)
    assert back["evidence"]["mba"]["withheld"] and back["reranking"]["mba"]["cosine"]["own"]
