"""Reader of HKPolyU Hand Dorsal (HD): flat folders, the identity is in the file name."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from handclip_lib.data.check import TableError, check_images, finish, sample

SOURCE = "http://www4.comp.polyu.edu.hk/~csajaykr/knuckleV2.htm (on request)"
MAIN, EXTRA = "1-501", "502-712"
EXTRA_OFFSET = 1000  # keeps the extra persons' ids clear of the main ones
_COMPLETE = 4650 + 1342  # photographs, main and extra
# "right hand", "left and right hands"; neither "from left to right" nor "the right-hand side"
_SIDE = "(?:right|left)"
_HANDS = re.compile(rf"\b(?:{_SIDE}[\s,/&]+(?:(?:and|or)\s+)?)*{_SIDE}\s+hands?\b(?!\s+side)", re.I)


def read_hd(root: str | Path, check_files: bool = True) -> pd.DataFrame:
    """HD as one table: `image` (relative to root), `pid`, `aspect`, `dataset`, `distractor`.

    root holds `Original Images/` (or `Original_Images/`) with `1-501/` and `502-712/`. A person of
    the extra folder is a distractor with pid = id + 1000. The aspect is dorsal_r or dorsal_l
    when a README in root speaks of right hands or of left hands, not of both, else `dorsal`.
    Raises FileNotFoundError or TableError. Protocol: Baisa et al. 2022, arXiv:2108.02234.
    """
    root = Path(root).expanduser().resolve()
    folder = _photographs(root)
    aspect = _aspect(root)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for part, offset in ((MAIN, 0), (EXTRA, EXTRA_OFFSET)):
        for path in sorted((folder / part).glob("*")):
            if path.suffix.lower() != ".jpg" or path.name.startswith("."):
                continue
            number = path.name.split("_")[0]
            if not (number.isascii() and number.isdecimal()):
                problems.append(f"{part}/{path.name}: the name does not begin with a number and _")
                continue
            image = path.relative_to(root).as_posix()
            fixed = {"aspect": aspect, "dataset": "HD", "distractor": offset > 0}
            rows.append({"image": image, "pid": int(number) + offset, **fixed})
    rows.sort(key=lambda row: (row["distractor"], row["pid"], row["image"]))
    main, extra = ({row["pid"] for row in rows if row["distractor"] is d} for d in (False, True))
    problems += [
        f"{MAIN}: id {i} is also id {i - EXTRA_OFFSET} + {EXTRA_OFFSET} of {EXTRA}"
        for i in main & extra
    ]
    if check_files:
        problems += check_images(root, [("", row["image"]) for row in rows])
    title = "HKPolyU Hand Dorsal"
    if len(rows) != _COMPLETE:
        title += f" (sample: {sample(rows)})"
    return finish(rows, root, title, problems, ", read as HD")


def _photographs(root: Path) -> Path:
    for folder in (root / "Original Images", root / "Original_Images", root):
        if (folder / MAIN).is_dir():
            return folder
    if not root.is_dir():
        raise FileNotFoundError(
            f"no HD data at {root}: get it from {SOURCE}, or say with data.root where it lies"
        )
    raise TableError(f"{root}: no folder 'Original Images/{MAIN}' (or Original_Images/{MAIN})")


def _aspect(root: Path) -> str:
    readmes = [f for f in root.iterdir() if f.name.lower().startswith("readme") and f.is_file()]
    text = " ".join(f.read_text(encoding="utf-8", errors="replace") for f in sorted(readmes))
    phrases = " ".join(_HANDS.findall(text)).lower()
    sides = {side for side in ("right", "left") if side in phrases}
    return f"dorsal_{sides.pop()[0]}" if len(sides) == 1 else "dorsal"
