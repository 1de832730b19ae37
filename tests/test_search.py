"""`search` and `verify`: own photographs, ranked and weighed, and what is refused or withheld."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw

from handclip_lib import cli
from handclip_lib.data.check import TableError
from handclip_lib.data.drawn.dataset import COMMENT
from handclip_lib.data.photographs import one_photograph, read_photographs
from handclip_lib.evaluate.calibration import apply, fit_logistic
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.params import load
from handclip_lib.report import calibrated, outside
from handclip_lib.report.calibrated import Met
from handclip_lib.report.outside import entries_met
from handclip_lib.report.runs import resolved
from handclip_lib.report.search import Instrument, compare, open_instrument, search
from handclip_lib.report.spaces import maker

FEATURE = ("pool", "proj")


def hand(path: Path, colour: int, shot: int = 0, comment: bytes = b"") -> Path:
    """Something of a hand's size on white: a palm with fingers, in a colour of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (160, 120), "white")
    pen, skin = ImageDraw.Draw(picture), (90 + 15 * colour, 60 + 9 * colour, 150 - 20 * colour)
    pen.ellipse((50 - shot, 45, 100 + shot, 105), fill=skin)  # another width each shot
    for finger in range(4):
        left = 52 + 12 * finger
        pen.rectangle((left, 20 + 3 * ((colour + finger) % 4), left + 7, 60), fill=skin)
    if path.suffix == ".jpg":
        picture.save(path, quality=95, comment=comment)
    else:
        picture.save(path)
    return path


@pytest.fixture(scope="module")
def tiny() -> Encoder:
    return load_encoder("tiny")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gallery/<person>/<shot>.png of four persons, and query.png of person `p2`."""
    root = tmp_path_factory.mktemp("own")
    for person in range(4):
        for shot in range(3):
            hand(root / "gallery" / f"p{person}" / f"{shot}.png", person, 2 * shot)
    hand(root / "query.png", 2, 1)
    return root


@pytest.fixture(scope="module")
def tower(tiny: Encoder) -> Instrument:
    return Instrument(tiny, FEATURE, "tiny", "nobody", None, "there is none")


def pairs(seed: int = 0) -> pd.DataFrame:
    """Similarities of 20 persons' pairs, as `pairs_of` names them."""
    rng = np.random.default_rng(seed)
    genuine = np.repeat([True, False], [60, 600])
    scores = np.where(genuine, rng.normal(0.9, 0.05, 660), rng.normal(0.6, 0.15, 660))
    who = np.tile(np.arange(20), 33)
    return pd.DataFrame({"similarity": scores, "genuine": genuine, "query_person": who})


def run_of_06(
    reports: Path,
    encoder: Encoder,
    aspect: str = "dorsal_r",
    data: str = "own hands: x",
    model: str = "stage1",
    manifest: str = "",
    root: str = "",
) -> Path:
    """The folder of a run of notebook 06 that calibrated this encoder, as that leaves it."""
    held = calibrated.calibrated(pairs(), f"{aspect}, {data}", maker(encoder, FEATURE))
    worth = {"cllr": 0.3, "misleading_genuine": 0.05, "misleading_impostor": 0.1, "withheld": ""}
    told = {"study": "demo", "aspect": aspect, "seed": 0, "tag": "", "data": data}
    folder = reports / "demo" / "seed0" / aspect / calibrated.NOTEBOOK
    folder.mkdir(parents=True)
    metrics = told | {"notebook": calibrated.NOTEBOOK, "evidence": {model: worth}}
    metrics["evidence"][model] = worth | {"calibration": held}
    params = resolved(load(aspect, overrides={"data": {"root": root}} if root else {}, tag="t"))
    rows = f"split,draw,pid,aspect,image\n{manifest}"
    for name, content in (("metrics.json", metrics), ("stamp.json", {}), ("params.json", params)):
        (folder / name).write_text(json.dumps(content))
    (folder / "manifest.csv").write_text(rows)
    return folder


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANDCLIP_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


@pytest.fixture
def weighed(reports: Path, tiny: Encoder) -> Instrument:
    """`tiny`, calibrated on dorsal right hands."""
    run_of_06(reports, tiny)
    return open_instrument("tiny", aspect="dorsal_r")


# --- searching ----------------------------------------------------------------------------------


def test_a_ranking_is_by_cosine_and_names_persons(tower, photographs):
    found = search(tower, photographs / "query.png", photographs / "gallery", top=5)
    table = read_photographs(photographs / "gallery")
    z, q = tower.features(table), tower.features(one_photograph(photographs / "query.png"))
    order = np.argsort(-np.round(z.astype(float) @ q[0].astype(float), 6), kind="stable")[:5]
    root = Path(table.attrs["root"])
    assert found.ranking["image"].tolist() == [str(root / table["image"][i]) for i in order]
    assert found.ranking["person"].tolist() == [table["person"][i] for i in order]
    assert found.ranking["person"][0] == "p2" and found.ranking["rank"].tolist() == [1, 2, 3, 4, 5]
    assert (found.entries, found.persons, found.copies) == (12, 4, ())
    assert found.ranking["llr"].isna().all() and found.withheld == "there is none"


def test_copies_of_the_query_are_left_out_of_the_ranking(tower, photographs, tmp_path):
    gallery = tmp_path / "gallery"
    shutil.copytree(photographs / "gallery", gallery)
    shutil.copy(photographs / "query.png", gallery / "p0" / "copy.png")
    Image.open(photographs / "query.png").save(gallery / "p1" / "again.bmp")  # other bytes
    found = search(tower, photographs / "query.png", gallery)
    assert set(found.copies) == {"p0/copy.png", "p1/again.bmp"} and found.entries == 12
    assert not {"copy.png", "again.bmp"} & {Path(image).name for image in found.ranking["image"]}
    inside = search(tower, gallery / "p0" / "0.png", gallery)
    assert inside.copies == ("p0/0.png",)
    shutil.rmtree(gallery / "p0")
    for person in ("p1", "p2", "p3"):
        shutil.rmtree(gallery / person)
    shutil.copy(photographs / "query.png", gallery / "alone.png")
    with pytest.raises(ValueError, match="nothing but the query itself"):
        search(tower, photographs / "query.png", gallery)


def test_a_csv_names_persons_and_aspects(weighed, photographs, tmp_path):
    rows = ["image,pid,aspect"]
    rows += [f"{photographs}/gallery/p0/{k}.png,anna,dorsal_r" for k in range(2)]
    rows += [f"{photographs}/gallery/p2/{k}.png,ben,palmar_r" for k in range(2)]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    found = search(weighed, photographs / "query.png", tmp_path / "list.csv", aspect="dorsal_r")
    anna = found.ranking["person"] == "anna"
    assert not found.withheld and found.ranking["llr"][anna].notna().all()
    assert found.ranking["llr"][~anna].isna().all(), "they show another aspect"
    scores = found.ranking["similarity"][anna]
    expected = apply(weighed.population.calibration, scores)
    assert found.ranking["llr"][anna].to_numpy() == pytest.approx(expected)


# --- comparing ----------------------------------------------------------------------------------


def test_a_ratio_is_the_calibrations_and_never_without_its_population(weighed, photographs):
    sides = [photographs / "gallery" / name for name in ("p0/0.png", "p0/1.png")]
    found = compare(weighed, *sides, aspect="dorsal_r")
    told = pairs()
    own = fit_logistic(told["similarity"], told["genuine"], told["query_person"], "")
    assert found.llr == pytest.approx(float(apply(own, found.similarity))) and not found.withheld
    from handclip_lib.report.findings import of_comparison

    said = " ".join(of_comparison(found, weighed))
    assert "20 persons, 60 pairs of one hand and 600 of two persons' hands" in said
    assert "dorsal_r, own hands: x" in said and "ENFSI 2015" in said


def test_the_same_picture_twice_is_no_evidence(weighed, photographs, tmp_path):
    one = photographs / "query.png"
    found = compare(weighed, one, one, aspect="dorsal_r")
    assert found.similarity == 1 and found.llr is None and "one file" in found.withheld
    (tmp_path / "link.png").symlink_to(one)
    assert "one file" in compare(weighed, one, tmp_path / "link.png", aspect="dorsal_r").withheld
    Image.open(one).save(tmp_path / "other.bmp")
    again = compare(weighed, one, tmp_path / "other.bmp", aspect="dorsal_r")
    assert again.llr is None and "one picture, pixel by pixel" in again.withheld


def test_another_aspect_than_the_calibrations_has_no_ratio(weighed, photographs):
    sides = [photographs / "gallery" / name for name in ("p0/0.png", "p0/1.png")]
    palmar = compare(weighed, *sides, aspect="palmar_l")
    assert palmar.llr is None
    assert "shows palmar left, and the calibration is of dorsal right" in palmar.withheld
    unknown = compare(weighed, *sides)
    assert unknown.llr is not None
    assert "nothing says which aspect 0.png shows" in " ".join(unknown.remarks)


def test_what_a_photographs_folder_says_is_not_overruled(weighed, photographs, tmp_path):
    (tmp_path / "palmar_l").mkdir()
    for name in ("a", "b"):
        source = photographs / "gallery" / "p0" / f"{'01'[name == 'b']}.png"
        (tmp_path / "palmar_l" / f"{name}.png").write_bytes(source.read_bytes())
    sides = [tmp_path / "palmar_l" / f"{name}.png" for name in ("a", "b")]
    assert "palmar left" in compare(weighed, *sides).withheld.lower()
    with pytest.raises(TableError, match="shows palmar_l by its data or folder, not dorsal_r"):
        compare(weighed, *sides, aspect="dorsal_r")


def test_entries_that_the_study_knows_are_told():
    known = [Met(True, True), Met(True, False), Met(False, True), Met(False, False)]
    told = list(entries_met(known))
    assert [line[: line.index("photograph")] for line in told] == [
        "without a ratio: 1 ",
        "1 ",
        "2 ",
    ]
    assert list(entries_met([])) == []


def test_drawn_hands_and_photographs_are_two_populations(reports, tiny, photographs, tmp_path):
    run_of_06(reports, tiny, data="drawn hands (demonstration)")
    weighed = open_instrument("tiny", aspect="dorsal_r")
    drawn = [hand(tmp_path / f"{k}.jpg", k, comment=COMMENT) for k in range(2)]
    assert compare(weighed, *drawn, aspect="dorsal_r").llr is not None
    mixed = compare(weighed, drawn[0], photographs / "query.png", aspect="dorsal_r")
    assert mixed.llr is None and "query.png is none of them" in mixed.withheld
    guessed = compare(weighed, *drawn)  # no aspect told: the shipped tower's words are asked
    assert guessed.llr is not None and "0.jpg" in " ".join(guessed.remarks)


@pytest.mark.parametrize(("split", "named", "trained"), [
    ("train", "stage1", True), ("train", "zero_shot", False), ("query", "stage1", False),
])  # fmt: skip
def test_photographs_that_the_study_knows(
    reports, tiny, photographs, tmp_path, split, named, trained
):
    rows = f"{split},0,1,dorsal_r,p0/0.png\n"
    own = str(photographs / "gallery")
    run_of_06(reports, tiny, model=named, manifest=rows, root=own)
    weighed = open_instrument("tiny", aspect="dorsal_r")
    known = photographs / "gallery" / "p0" / "0.png"
    found = compare(weighed, known, photographs / "gallery" / "p0" / "1.png", aspect="dorsal_r")
    assert (
        ("the model was trained or chosen by" in found.withheld) == trained == (found.llr is None)
    )
    assert trained or "a photograph that the calibration was made with" in " ".join(found.remarks)
    copied = Path(shutil.copy(known, tmp_path / "renamed.png"))
    found = compare(weighed, copied, photographs / "gallery" / "p0" / "1.png", aspect="dorsal_r")
    assert (found.llr is None) == trained and "renamed.png is " in found.withheld + "".join(
        found.remarks
    )
    other = photographs / "gallery" / "p1" / "0.png"  # of that name, with other content
    same = compare(weighed, other, photographs / "query.png", aspect="dorsal_r")
    assert same.llr is not None and not any("0.png" in told for told in same.remarks)
    ranked = search(weighed, photographs / "query.png", photographs / "gallery", 12, "dorsal_r")
    without = ranked.ranking.loc[ranked.ranking["llr"].isna(), "image"].tolist()
    assert without == ([str(known)] if trained else [])


def test_a_name_alone_is_only_a_remark(reports, tiny, photographs):
    rows = "train,0,1,dorsal_r,Hands/query.png\n"
    run_of_06(reports, tiny, manifest=rows, root="/nowhere")
    weighed = open_instrument("tiny", aspect="dorsal_r")
    side = photographs / "gallery" / "p0" / "1.png"
    found = compare(weighed, photographs / "query.png", side, aspect="dorsal_r")
    assert found.llr is not None
    assert "query.png has the name of a photograph of the model's training set" in found.remarks[0]


def test_a_similarity_that_the_population_never_had_is_said(weighed):
    low, high = weighed.population.scores
    assert not list(outside.beyond(weighed.population, (low + high) / 2))
    assert "above all" in next(outside.beyond(weighed.population, high + 0.01))
    assert "below all" in next(outside.beyond(weighed.population, low - 0.01))


# --- no hand ------------------------------------------------------------------------------------


def test_a_picture_without_a_hand_is_refused_unless_forced(weighed, photographs, tmp_path):
    empty = tmp_path / "empty.png"
    Image.new("RGB", (160, 120), "white").save(empty)
    query = photographs / "query.png"

    def asked(force: bool) -> list[str]:
        pair = compare(weighed, empty, query, "dorsal_r", force)
        return [
            pair.withheld,
            search(weighed, empty, photographs / "gallery", 1, "dorsal_r", force).withheld,
        ]

    with pytest.raises(outside.NoHand, match=r"no hand found in .*empty\.png: .*--force"):
        asked(force=False)
    with pytest.raises(outside.NoHand, match=r"no hand found in .*empty\.png: .*--force"):
        search(weighed, empty, photographs / "gallery")
    assert all("no hand was found" in withheld for withheld in asked(force=True))
    shutil.copytree(photographs / "gallery", tmp_path / "gallery")
    shutil.copy(empty, tmp_path / "gallery" / "p0" / "empty.png")
    found = search(weighed, query, tmp_path / "gallery", top=13, aspect="dorsal_r")
    without = found.ranking[~found.ranking["hand"]]
    assert [Path(image).name for image in without["image"]] == ["empty.png"]
    assert without["llr"].isna().all() and found.ranking["llr"].notna().sum() == 12


# --- calibrations -------------------------------------------------------------------------------


def test_which_calibration_is_taken(reports, tiny, photographs):
    missing = open_instrument("tiny")
    assert missing.population is None
    assert "`handclip run 06 --study demo --aspect ASPECT` makes one" in missing.why
    first = run_of_06(reports, tiny, "dorsal_r")
    assert open_instrument("tiny").population.run == first
    run_of_06(reports, tiny, "palmar_r")
    both = open_instrument("tiny")
    assert both.population is None and "dorsal_r, palmar_r: --aspect" in both.why
    assert open_instrument("tiny", aspect="palmar_r").population.aspect == "palmar_r"
    given = open_instrument("tiny", calibration=str(first), aspect="palmar_r")
    assert given.population.run == first
    other = open_instrument("tiny_rn")
    assert other.population is None and "stage1 (other weights" in other.why
    with pytest.raises(ValueError, match="no calibration of this model: its 06 calibrated stage1"):
        open_instrument("tiny_rn", calibration=str(first))
    with pytest.raises(FileNotFoundError, match="no finished run in"):
        open_instrument("tiny", calibration=str(photographs))


def test_a_calibration_holds_for_what_made_its_features(reports, tiny):
    folder = run_of_06(reports, tiny)
    made_by = maker(tiny, FEATURE)
    assert calibrated.read_population(folder, made_by).calibration.persons == 20
    with pytest.raises(ValueError, match=r"stage1 \(other feature\)"):
        calibrated.read_population(folder, made_by | {"feature": ["proj"]})
    squashed = made_by["preprocess"] | {"fit": "squash"}
    with pytest.raises(ValueError, match=r"stage1 \(other preprocessing\)"):
        calibrated.read_population(folder, made_by | {"preprocess": squashed})
    told = json.loads((folder / "metrics.json").read_text())
    told["evidence"]["stage1"] = {"withheld": "3 persons are too few"}
    (folder / "metrics.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="3 persons are too few"):
        calibrated.read_population(folder, made_by)


@pytest.mark.parametrize(("llr", "words"), [
    (0.29, "support for neither"), (-0.29, "support for neither"),
    (0.31, "weak support for one hand"), (0.99, "weak support for one hand"),
    (1.0, "moderate support for one hand"), (2.0, "moderately strong support for one hand"),
    (3.5, "strong support for one hand"), (4.0, "very strong support for one hand"),
    (6.0, "extremely strong support for one hand"),
    (-2.5, "moderately strong support for hands of two persons rather than one hand"),
])  # fmt: skip
def test_the_verbal_scale(llr, words):
    assert calibrated.verbal(llr).startswith(words)


def test_no_more_digits_than_a_population_gives():
    assert [calibrated.factor(llr) for llr in (2.31, -2.31, 0.7, 4.123)] == [
        "about 200", "about 200", "about 5", "about 13,000"
    ]  # fmt: skip


# --- the commands -------------------------------------------------------------------------------


def test_the_page_and_the_terminal_say_the_same(reports, tiny, photographs, tmp_path, capsys):
    run_of_06(reports, tiny)
    page = tmp_path / "page.html"
    line = ["search", photographs / "query.png", "--gallery", photographs / "gallery", "--model",
            "tiny", "--aspect", "dorsal_r", "--top", 4, "--out", page]  # fmt: skip
    assert cli.main([str(word) for word in line]) == 0
    said, text = " ".join(capsys.readouterr().out.split()), page.read_text()
    told = open_instrument("tiny", aspect="dorsal_r")
    found = search(told, photographs / "query.png", photographs / "gallery", 4, "dorsal_r")
    for row in found.ranking.to_dict("records"):
        assert f"{row['similarity']:.3f} {row['llr']:+.2f} {row['person']} {row['image']}" in said
        assert f"person {row['person']} · dorsal right" in text
        assert f"similarity {row['similarity']:.3f}" in text
    for words in ("20 persons, 60 pairs of one hand", "Every ranking has a first",
                  "It is no probability"):  # fmt: skip
        assert words in said and words in text
    assert tiny.weights_sha256 in text and "were trained on drawn hands" in text
    assert "<script" not in text and 'src="http' not in text and text.count("<figure") == 5
    assert text.count("data:image/png") == 3, "side by side, attention, calibration"


def test_verify_on_the_terminal(reports, photographs, capsys):
    sides = [str(photographs / "gallery" / name) for name in ("p0/0.png", "p1/0.png")]
    assert cli.main(["verify", *sides, "--model", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "Similarity of 0.png and 0.png: " in said and "No likelihood ratio: study demo" in said
    page = Path(said.rpartition("page: ")[2].strip())
    assert page.parent == reports / "evidence" and "None is used" in page.read_text()


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[str], str]:
    """A path of a file that is wrong in the way of its name."""
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    (tmp_path / "text.jpg").write_text("no picture")
    whole = hand(tmp_path / "whole.jpg", 1).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "nobody").mkdir()
    return lambda name: str(tmp_path / name)


@pytest.mark.parametrize(("line", "status", "says"), [
    ("verify QUERY QUERY --model BROKEN/text.pth", 1, "is damaged, or no weights file"),
    ("verify QUERY QUERY --model BROKEN/other.pth", 1, "no checkpoint of this kit"),
    ("verify QUERY QUERY --model tiny --pretrained BROKEN/other.pth", 1, "brings its own weights"),
    ("verify QUERY QUERY --model BROKEN/none.pth", 2, "no model folder"),
    ("verify QUERY QUERY --model BROKEN/nobody", 2, "neither open_clip_config.json nor"),
    ("verify QUERY QUERY --model ViT-B-16", 1, "needs weights"),
    ("verify QUERY BROKEN/text.jpg --model tiny", 1, "is not a picture that Pillow can read"),
    ("verify BROKEN/cut.jpg QUERY --model tiny", 1, "is cut off or damaged"),
    ("verify QUERY BROKEN/none.jpg --model tiny", 2, "no photograph "),
    ("verify QUERY BROKEN/nobody --model tiny", 1, "is a folder: name one photograph"),
    ("verify QUERY QUERY --model tiny --aspect dorsal_rr", 2, "did you mean 'dorsal_r'"),
    ("verify QUERY QUERY --model tiny --study no_such", 2, "no study 'no_such'"),
    ("verify QUERY QUERY --model tiny --out x.pdf", 2, "a page ends in .html"),
    ("search QUERY --gallery BROKEN/nobody --model tiny", 1, "no photographs in it"),
    ("search QUERY --gallery BROKEN/none --model tiny", 2, "no photographs at"),
    ("search QUERY --gallery GALLERY --model tiny --top 0", 2, "--top 0: at least 1"),
])  # fmt: skip
def test_what_cannot_be_is_one_message(line, status, says, broken, reports, photographs, capsys):
    words = line.replace("QUERY", str(photographs / "query.png"))
    words = words.replace("GALLERY", str(photographs / "gallery"))
    words = words.replace("BROKEN", broken("x")[:-2])
    assert cli.main(words.split()) == status
    told = capsys.readouterr()
    assert says in told.err and "Traceback" not in told.err
    assert not (reports / "evidence").exists()


def test_without_a_model_it_is_the_studys(reports, photographs, capsys):
    sides = [str(photographs / "gallery" / name) for name in ("p0/0.png", "p1/0.png")]
    assert cli.main(["verify", *sides, "--study", "smoke"]) == 0
    assert "the tower of study smoke" in capsys.readouterr().out


# --- real photographs ---------------------------------------------------------------------------


def test_real_photographs(test_data, tower, tmp_path):
    root = test_data / "11k_sample"
    table = pd.read_csv(root / "HandInfo.csv", dtype=str).drop_duplicates(["id", "aspectOfHand"])
    few = table.groupby("id").head(2)[:6]
    rows = [f"{root}/Hands/{row.imageName},{row.id}" for row in few.itertuples()]
    (tmp_path / "few.csv").write_text("\n".join(["image,pid", *rows]))
    query = root / "Hands" / few["imageName"].iloc[0]
    found = search(tower, query, tmp_path / "few.csv", top=3)
    assert len(found.copies) == 1 and found.entries == len(few) - 1 and found.persons > 1
    assert found.ranking["hand"].all() and found.ranking["similarity"].is_monotonic_decreasing
    assert found.query["aspect"].iloc[0] == "_".join(
        (few["aspectOfHand"].iloc[0].split()[0], few["aspectOfHand"].iloc[0].split()[1][0])
    )
    other = Path(found.ranking["image"][0])
    pair = compare(tower, query, other)
    assert pair.llr is None and pair.similarity == found.ranking["similarity"][0]
