"""The three readers: what they give, and what each kind of broken input is told."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from handclip_lib import params
from handclip_lib.data import tables
from handclip_lib.data.check import TableError
from handclip_lib.data.drawn.dataset import COMMENT
from handclip_lib.data.hd import read_hd
from handclip_lib.data.own import read_own
from handclip_lib.data.tables import read_11k

HEADER = (
    "id", "age", "gender", "skinColor", "accessories", "nailPolish", "aspectOfHand", "imageName",
    "irregularities",
)  # fmt: skip
ROWS = [
    ("0000000", "27", "male", "fair", "0", "0", "dorsal right", "Hand_2.jpg", "0"),
    ("0000000", "27", "male", "fair", "1", "0", "palmar left", "Hand_3.jpg", "0"),
    ("0000045", "31", "female", "very fair", "0", "1", "dorsal right", "Hand_4.jpg", "1"),
]


def photograph(path: Path, form: str | None = None, size: tuple[int, int] = (16, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 60).convert("RGB").save(path, format=form)
    return path


def make_11k(root: Path, rows: Sequence[Sequence[str]] = ROWS, photographs: bool = True) -> Path:
    root.mkdir(exist_ok=True)
    lines = [",".join(HEADER), *(",".join(row) for row in rows)]
    (root / "HandInfo.csv").write_text("\n".join(lines) + "\n")
    for row in rows if photographs else ():
        photograph(root / "Hands" / row[7])
    return root


def change(row: int, column: str, value: str) -> list[list[str]]:
    rows = [list(r) for r in ROWS]
    rows[row][HEADER.index(column)] = value
    return rows


# --- 11k Hands ---------------------------------------------------------------------------------


def test_11k_gives_all_rows_with_their_metadata(tmp_path: Path) -> None:
    table = read_11k(make_11k(tmp_path))
    assert list(table["image"]) == ["Hands/Hand_2.jpg", "Hands/Hand_3.jpg", "Hands/Hand_4.jpg"]
    assert list(table["pid"]) == [0, 0, 45]
    assert list(table["aspect"]) == ["dorsal_r", "palmar_l", "dorsal_r"]
    assert set(table["dataset"]) == {"11k"}
    assert list(table["accessories"]) == [0, 1, 0] and list(table["age"]) == [27, 27, 31]
    assert {"gender", "skinColor", "nailPolish", "irregularities"} <= set(table.columns)
    assert table.attrs["root"] == str(tmp_path.resolve())
    assert table.attrs["title"] == "11k Hands (sample: 2 persons, 3 photographs)"


def test_metadata_alone_needs_no_photographs(tmp_path: Path) -> None:
    root = make_11k(tmp_path, photographs=False)
    assert len(read_11k(root, check_files=False)) == 3
    with pytest.raises(FileNotFoundError, match="no folder Hands/"):
        read_11k(root)


def test_every_spelling_of_the_csv_is_the_same_table(tmp_path: Path) -> None:
    root = make_11k(tmp_path, photographs=False)
    path = root / "HandInfo.csv"
    plain = read_11k(root, check_files=False)
    text = path.read_text()
    quoted = "\n".join(",".join(f'"{c}"' for c in line.split(",")) for line in text.splitlines())
    for spelt in (
        text.replace("\n", "\r\n"),
        "\ufeff" + text,
        "\ufeff" + quoted,
        text.replace("0000045", '"0000045 "'),
        text.replace("0000045", "45").replace("0000000", "0"),
        text.replace(",", ";"),
        text + "\n\n",
    ):
        path.write_bytes(spelt.encode())
        pd.testing.assert_frame_equal(read_11k(root, check_files=False), plain)


def variants(source: Path) -> dict[str, bytes]:
    """The spellings of HandInfo.csv in the wild, made from the original."""
    with source.open(newline="") as file:
        lines = list(csv.reader(file))
    stripped = [lines[0], *([str(int(row[0])), *row[1:]] for row in lines[1:])]
    original = source.read_bytes()
    return {
        "original": original,
        "lf": original.replace(b"\r\n", b"\n"),
        "blank repaired": original.replace(b'"1200000 "', b'"1200000"'),
        "padding stripped, unquoted": "\n".join(",".join(r) for r in stripped).encode(),
        "byte order mark": b"\xef\xbb\xbf" + original,
        "semicolons": "\r\n".join(";".join(r) for r in stripped).encode(),
    }


def test_every_variant_of_the_real_csv_is_the_same_table(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "HandInfo_full.csv"
    assert source.read_bytes().count(b'"1200000 "') == 1  # the famous 190th person
    seen = []
    for content in variants(source).values():
        (tmp_path / "HandInfo.csv").write_bytes(content)
        seen.append(read_11k(tmp_path, check_files=False))
    for table in seen:
        pd.testing.assert_frame_equal(table, seen[0])
    assert (len(seen[0]), seen[0]["pid"].nunique(), seen[0]["pid"].max()) == (
        11_076,
        189,
        9_000_000,
    )
    assert (seen[0]["accessories"] == 0).sum() == 7_865
    assert seen[0].attrs["title"] == "11k Hands"


def test_real_photographs_are_whole(test_data: Path) -> None:
    table = read_11k(test_data / "11k_sample")
    assert table.attrs["title"] == "11k Hands (sample: 75 persons, 409 photographs)"
    assert all((Path(table.attrs["root"]) / image).is_file() for image in table["image"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (change(2, "aspectOfHand", "dorsal rigth"), r"row 4: .*'dorsal rigth'; did you mean 'dors"),
        (change(1, "id", "000x"), r"row 3: id '000x' is not a whole number"),
        (change(1, "id", "4.5E+05"), r"row 3: id '4\.5E\+05' is not a whole number"),
        (change(0, "age", "old"), r"row 2: age 'old' is not a whole number"),
        (change(0, "accessories", ""), r"row 2: the cell 'accessories' is empty"),
        (change(0, "nailPolish", "2"), r"row 2: nailPolish must be 0 or 1, not '2'"),
        (change(1, "aspectOfHand", "dorsal"), r"row 3: unknown aspectOfHand 'dorsal'"),
        (change(1, "aspectOfHand", "hand"), r"row 3: unknown aspectOfHand 'hand'"),
        (change(2, "id", " "), r"row 4: the cell 'id' is empty"),
        (change(2, "imageName", "Hand_2.jpg"), r"row 4: image .*Hand_2\.jpg .*twice.* row 2"),
        ([(*ROWS[0], "more")], r"row 2: 10 cells for 9 columns"),
        ([ROWS[0], ROWS[1][:5]], r"row 3: the cell 'irregularities' is empty"),
        ([], r"HandInfo\.csv has no rows"),
    ],
)
def test_a_bad_row_of_11k_is_named(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        read_11k(make_11k(tmp_path, rows, photographs=False), check_files=False)
    assert "HandInfo.csv" in str(caught.value)


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    make_11k(tmp_path, photographs=False)
    path = tmp_path / "HandInfo.csv"
    whole = path.read_text()
    path.write_text(whole.replace("imageName", "image_name"))
    with pytest.raises(
        TableError, match=r"no column 'imageName'; did you mean 'image_name'\?.*age"
    ):
        read_11k(tmp_path, check_files=False)
    path.write_text("")
    with pytest.raises(TableError, match=r"no column 'id'; it has nothing"):
        read_11k(tmp_path, check_files=False)
    path.write_bytes(whole.encode("utf-16"))
    with pytest.raises(TableError, match=r"not UTF-8"):
        read_11k(tmp_path, check_files=False)


def test_all_bad_photographs_are_reported_together(tmp_path: Path) -> None:
    names = [f"Hand_{n}.jpg" for n in range(9)]
    make_11k(tmp_path, [(*ROWS[0][:7], name, "0") for name in names])
    hands = tmp_path / "Hands"
    whole = photograph(tmp_path / "big.jpg", size=(640, 480)).read_bytes()
    (hands / names[0]).unlink()
    (hands / names[1]).write_bytes(b"")
    (hands / names[2]).write_text("not a photograph")
    (hands / names[3]).unlink()
    (hands / names[3]).mkdir()
    (hands / names[4]).write_bytes(whole[: len(whole) // 2])
    (hands / names[5]).write_bytes(whole[:20])
    (hands / names[6]).write_bytes(whole + b"\0" * 40)  # a phone's trailer: odd, but whole
    photograph(hands / names[7], "PNG")  # a wrong suffix doesn't matter
    with pytest.raises(TableError) as caught:
        read_11k(tmp_path)
    problems = caught.value.problems
    expected = ["is missing", "is empty", "not a picture", "is a folder", "cut off", "Hand_5.jpg"]
    assert len(problems) == len(expected)
    for line, (word, problem) in enumerate(zip(expected, problems, strict=True), start=2):
        assert word in problem and problem.startswith(f"row {line}: Hands/Hand_")
    assert all(problem in str(caught.value) for problem in problems)


def test_a_cut_png_is_found(tmp_path: Path) -> None:
    path = photograph(tmp_path / "ann" / "a.png", size=(200, 200))
    path.write_bytes(path.read_bytes()[:-30])
    photograph(tmp_path / "bob" / "b.png")
    with pytest.raises(TableError, match=r"ann/a\.png is cut off"):
        read_own(tmp_path)


def test_a_long_list_is_capped_in_print_but_whole_on_the_error(tmp_path: Path) -> None:
    rows = [(*ROWS[0][:7], f"Hand_{n}.jpg", "0") for n in range(130)]
    root = make_11k(tmp_path, rows, photographs=False)
    (root / "Hands").mkdir()
    with pytest.raises(TableError) as caught:
        read_11k(root)
    assert len(caught.value.problems) == 130
    assert len(str(caught.value).splitlines()) == 52 and "… and 80 more" in str(caught.value)


def test_no_data_says_where_to_get_it(tmp_path: Path) -> None:
    for reader in (read_11k, read_hd):
        with pytest.raises(FileNotFoundError, match=r"get .* from http.*data\.root"):
            reader(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"data\.root names a CSV"):
        read_own(tmp_path / "gone")
    make_11k(tmp_path / "11k")
    with pytest.raises(FileNotFoundError, match=r"but one in .*11k: set data\.root to that"):
        read_11k(tmp_path)


# --- HKPolyU Hand Dorsal -----------------------------------------------------------------------


def sizes(persons: int, total: int, ends: dict[int, int]) -> list[int]:
    """Images of each person: `ends` says how many persons have so many, the rest lies between."""
    counts = [size for size, n in ends.items() for _ in range(n)]
    rest = persons - len(counts)
    each, over = divmod(total - sum(counts), rest)
    counts += [each + (i < over) for i in range(rest)]
    assert sum(counts) == total and len(counts) == persons
    assert min(ends) <= min(counts) and max(counts) <= max(ends)
    return counts


def make_hd(root: Path, folder: str = "Original Images") -> Path:
    """HD's names and counts (persons, images, fewest and most of one), one tiny picture linked."""
    one = photograph(root / "one.jpg", size=(4, 3))
    main, extra = root / folder / "1-501", root / folder / "502-712"
    train = dict(zip(range(447, 196, -1), sizes(251, 2407, {6: 4, 18: 1}), strict=True))
    train[3] = train.pop(230)  # ids are not contiguous, and 3 sorts after 248 as text
    test = dict(zip(range(448, 699), sizes(251, 2243, {3: 1, 43: 1}), strict=True))
    others = dict(zip(range(502, 715), sizes(213, 1342, {2: 1, 13: 2}), strict=True))
    for part, persons in ((main, train | test), (extra, others)):
        part.mkdir(parents=True)
        for pid, n in persons.items():
            for shot in range(1, n + 1):
                os.link(one, part / f"{pid}_{shot}.{'JPG' if shot == 2 else 'jpg'}")
        (part / "Thumbs.db").write_text("")
    return root


@pytest.fixture(scope="module")
def hd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hd(tmp_path_factory.mktemp("hd"))


def test_hd_takes_persons_from_file_names(hd: Path) -> None:
    table = read_hd(hd)
    assert table.attrs["title"] == "HKPolyU Hand Dorsal"
    main, extra = table[~table["distractor"]], table[table["distractor"]]
    assert (len(main), main["pid"].nunique()) == (4650, 502)
    assert (len(extra), extra["pid"].nunique()) == (1342, 213)
    assert (extra["pid"].min(), extra["pid"].max()) == (1502, 1714)
    assert set(table["aspect"]) == {"dorsal"} and set(table["dataset"]) == {"HD"}
    assert "Original Images/1-501/448_2.JPG" in set(table["image"])


@pytest.mark.parametrize(
    ("name", "text", "aspect"),
    [
        ("README.txt", "All photographs show the RIGHT hand. All rights reserved.", "dorsal_r"),
        ("readme.md", "left hands; you have the right to use them", "dorsal_l"),
        ("ReadMe", "right and left hands", "dorsal"),
        ("README", "hands", "dorsal"),
        ("README", "Fingers are numbered from left to right, wrist on the left.", "dorsal"),
        ("README", "the right-hand column counts; on the left hand side: ids", "dorsal"),
        ("README", "Left/right hand of each; some left hands twice", "dorsal"),
        ("README", "Left hands, cropped right at the wrist", "dorsal_l"),
        ("notes.txt", "right hands", "dorsal"),
    ],
)
def test_hd_readme_tells_the_hand(tmp_path: Path, name: str, text: str, aspect: str) -> None:
    photograph(tmp_path / "Original_Images" / "1-501" / "7_1.jpg")
    (tmp_path / name).write_text(text)
    (tmp_path / "Original_Images" / "1-501" / "._7_1.jpg").write_bytes(b"what macOS leaves")
    table = read_hd(tmp_path)
    assert list(table["aspect"]) == [aspect] and list(table["pid"]) == [7]
    assert table.attrs["title"] == "HKPolyU Hand Dorsal (sample: 1 person, 1 photograph)"


def test_hd_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no folder 'Original Images/1-501'"):
        read_hd(tmp_path)
    main = tmp_path / "Original Images" / "1-501"
    main.mkdir(parents=True)
    with pytest.raises(TableError, match="no photographs"):
        read_hd(tmp_path)
    photograph(main / "left_1.jpg")
    photograph(main / "1502_1.jpg")
    photograph(main / "3_1.jpg").write_bytes(b"")
    photograph(tmp_path / "Original Images" / "502-712" / "502_1.jpg")
    with pytest.raises(TableError) as caught:
        read_hd(tmp_path)
    text = str(caught.value)
    assert "left_1.jpg: the name does not begin with a number" in text
    assert "id 1502 is also id 502 + 1000" in text and "3_1.jpg is empty" in text


# --- own photographs ---------------------------------------------------------------------------


def make_own(root: Path, text: str, images: Sequence[str]) -> Path:
    for image in images:
        photograph(root / image)
    path = root / "mine.csv"
    path.write_text(text)
    return path


def test_own_csv_with_names_aspects_and_cameras(tmp_path: Path) -> None:
    text = (
        "image,pid,aspect,camera,room\n"
        "zoe/1.png,Zoë,dorsal right,2,x\n./zoe\\2.tif,Zoë,palmar_l,1,x\nA.JPG,adam,dorsal_r,1,x\n"
    )
    path = make_own(tmp_path, text, ["zoe/1.png", "zoe/2.tif", "A.JPG"])
    table = read_own(path)
    assert list(table["image"]) == ["zoe/1.png", "zoe/2.tif", "A.JPG"]
    assert list(table["pid"]) == [0, 0, 1] and list(table["name"]) == ["Zoë", "Zoë", "adam"]
    assert list(table["aspect"]) == ["dorsal_r", "palmar_l", "dorsal_r"]
    assert list(table["camera"]) == [2, 1, 1] and set(table["dataset"]) == {"own"}
    assert table.attrs["title"] == "own hands: mine (2 persons, 3 photographs)"
    assert table.attrs["root"] == str(tmp_path.resolve())


def test_own_csv_needs_image_and_pid_only(tmp_path: Path) -> None:
    path = make_own(tmp_path, "pid;image\n7;b.jpg\n0012;a.jpg\n", ["a.jpg", "b.jpg"])
    table = read_own(path)
    assert list(table["pid"]) == [7, 12] and set(table["aspect"]) == {"hand"}
    assert "name" not in table
    path.write_text("pid,image\n7,b.jpg\n10000000,a.jpg\n")  # too large to keep
    table = read_own(path)
    assert list(table["pid"]) == [1, 0] and list(table["name"]) == ["7", "10000000"]


def test_own_absolute_paths_become_relative(tmp_path: Path) -> None:
    far = photograph(tmp_path / "far" / "a.jpg")
    (tmp_path / "near").mkdir()
    path = make_own(tmp_path / "near", f"image,pid\n{far},1\n", [])
    assert list(read_own(path)["image"]) == ["../far/a.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,person\na.jpg,1\n", r"mine\.csv: no column 'pid'.*it has image, person"),
        ("image,pid,aspect\na.jpg,1,dorsal_x\n", r"row 2: unknown aspect 'dorsal_x'; did you mean"),
        ("image,pid,aspect\na.jpg,1,\n", r"row 2: the cell 'aspect' is empty"),
        ("image,pid\na.jpg,\n,2\n", r"row 2: the cell 'pid'(.|\n)*row 3: the cell 'image'"),
        ("image,pid\na.jpg,1\n./a.jpg,1\n", r"row 3: image a\.jpg is there twice, first in row 2"),
        ("image,pid\na.jpg,7\nb.jpg,007\n", r"persons '007' and '7' have the same number"),
        ("image,pid,accessories\na.jpg,7,ring\n", r"column 'accessories' must be 0 or 1.*'ring'"),
        ("image,pid\na.jpg,1\nc.jpg,1\nd.jpg,1\n", r"row 3: c\.jpg is missing\n.*row 4: d\.jpg"),
        ("image,pid\n", r"has no rows"),
        ("image,pid,name\na.jpg,ann,Ann A.\n", r"column 'name' is ours .*rename it"),
        ("image,pid,dataset\na.jpg,7,lab\n", r"mine\.csv: column 'dataset' is ours .*rename it"),
    ],
)
def test_own_csv_faults_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_own(make_own(tmp_path, text, ["a.jpg", "b.jpg"]))


@pytest.mark.parametrize(
    "layout", ["{person}/{shot}", "{aspect}/{person}/{shot}", "{person}/{aspect}/{shot}"]
)
def test_own_folder_for_each_person(tmp_path: Path, layout: str) -> None:
    for n, (person, aspect) in enumerate(
        [("10", "dorsal_r"), ("9", "dorsal_r"), ("9", "palmar_l")]
    ):
        shot = f"{n}.{'webp' if n else 'bmp'}"
        photograph(tmp_path / layout.format(person=person, aspect=aspect, shot=shot))
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "notes.txt").write_text("not a photograph")
    table = read_own(tmp_path).sort_values("image", key=lambda i: i.str[-6:])
    assert sorted(table["pid"]) == [9, 9, 10]
    known = ["hand"] * 3 if "aspect" not in layout else ["dorsal_r", "dorsal_r", "palmar_l"]
    assert sorted(table["aspect"]) == known


def test_own_folder_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"holds no photographs; expected <person>/<photograph>"):
        read_own(tmp_path)
    photograph(tmp_path / "loose.jpg")
    photograph(tmp_path / "ann" / "deep" / "a.jpg")
    photograph(tmp_path / "ann" / "b.jpg")
    photograph(tmp_path / "bob" / "dorsal_r" / "c.jpg")
    (tmp_path / "bob" / "d.jpg").mkdir()
    with pytest.raises(TableError) as caught:
        read_own(tmp_path)
    text = str(caught.value)
    for part in ("loose.jpg is not at <person>/", "ann/deep/a.jpg is not at", "d.jpg is a folder"):
        assert part in text
    assert "ann/b.jpg lies in no aspect folder, unlike others" in text


# --- which reader ------------------------------------------------------------------------------


def study(dataset: str, root: Path | str) -> params.Params:
    return params.load(study="smoke", overrides={"data": {"dataset": dataset, "root": str(root)}})


def test_read_dispatches(tmp_path: Path, hd: Path) -> None:
    assert set(tables.read(study("11k", make_11k(tmp_path / "a")))["dataset"]) == {"11k"}
    assert set(tables.read(study("HD", hd))["dataset"]) == {"HD"}
    photograph(tmp_path / "own" / "ann" / "1.jpg")
    assert set(tables.read(study("own", tmp_path / "own"))["dataset"]) == {"own"}
    with pytest.raises(FileNotFoundError, match=r"data\.root is empty"):
        tables.read(study("own", ""))


def test_a_drawn_set_is_drawn_whatever_the_study_calls_it(tmp_path: Path) -> None:
    make_11k(tmp_path)
    (tmp_path / "drawn.json").write_text(json.dumps({}))
    table = read_11k(tmp_path)
    assert set(table["dataset"]) == {"drawn"}
    assert table.attrs["title"] == "drawn hands (demonstration)"


def test_drawn_pictures_never_pass_for_photographs(tmp_path: Path, hd: Path) -> None:
    root = make_11k(tmp_path / "copied")
    for row in ROWS:
        Image.new("RGB", (16, 12)).save(root / "Hands" / row[7], comment=COMMENT)
    table = read_11k(root)
    assert set(table["dataset"]) == {"drawn"}
    assert table.attrs["title"] == "drawn hands (demonstration)"
    mine = make_own(tmp_path, "image,pid\ncopied/Hands/Hand_2.jpg,7\n", [])
    mine = mine.rename(tmp_path / "lab.csv")
    assert read_own(mine).attrs["title"] == "drawn hands (demonstration), read as own: lab"
    assert set(read_own(mine)["dataset"]) == {"own"}
    one = tmp_path / "Original Images" / "1-501" / "3_1.jpg"
    one.parent.mkdir(parents=True)
    (root / "Hands" / "Hand_2.jpg").rename(one)
    assert read_hd(tmp_path).attrs["title"] == "drawn hands (demonstration), read as HD"


def test_a_photograph_that_may_not_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(tmp_path / "ann" / "a.jpg")

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)  # root reads whatever its mode
    with pytest.raises(TableError, match=r"ann/a\.jpg can't be read: check its permissions"):
        read_own(tmp_path)


def test_a_missing_drawn_set_is_drawn_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(root: Path, **told: object) -> Path:
        if not root.exists():
            assert (told["persons"], told["seed"], told["shots"]) == (8, 0, (4, 5))
            make_11k(root)
            (root / "drawn.json").write_text("{}")
        return root

    monkeypatch.setattr(tables, "draw_dataset", draw)
    for said in ("drawing the hands of 8 persons", ""):
        table = tables.read(study("drawn", tmp_path / "hands"))
        assert set(table["dataset"]) == {"drawn"} and len(table) == 3
        assert said in capsys.readouterr().out


def test_drawing_over_real_photographs_is_refused(tmp_path: Path) -> None:
    root = make_11k(tmp_path)
    with pytest.raises(ValueError, match="holds no drawn hands"):
        tables.read(study("drawn", root))


@pytest.mark.parametrize("names", [("anna", "ANNA"), ("1", "01x", "1.0"), ("x2", "2", "2.0")])
def test_own_persons_spelt_two_ways_are_a_problem(tmp_path: Path, names: tuple[str, ...]) -> None:
    rows = "".join(f"{i}.jpg,{name}\n" for i, name in enumerate(names))
    (tmp_path / "mine.csv").write_text("image,pid\n" + rows)
    with pytest.raises(TableError, match="look like one person: write them alike"):
        read_own(tmp_path / "mine.csv", check_files=False)


def test_own_persons_are_one_however_their_letters_are_composed(tmp_path: Path) -> None:
    text = "image,pid\n1.jpg,Zo\u00eb\n2.jpg,Zoe\u0308\n3.jpg,Ben\n"
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    assert read_own(tmp_path / "mine.csv", check_files=False)["pid"].nunique() == 2


def test_a_picture_of_a_type_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "phone.heic").write_bytes(b"ftypheic")
    with pytest.raises(TableError, match=r"anna/phone\.heic"):
        read_own(tmp_path)
