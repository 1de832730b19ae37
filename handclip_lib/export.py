"""`handclip export`: a tower as open_clip loads it, or a table of the features of photographs."""

import copy
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch

from handclip_lib.aspects import ASPECTS, CHAIN
from handclip_lib.data.atomic import write_whole
from handclip_lib.data.check import (
    TableError,
    aspect_of,
    check_images,
    finish,
    image_suffixes,
    listed,
    quantity,
    read_rows,
    repeated,
)
from handclip_lib.data.store import open_store
from handclip_lib.data.tables import read_11k
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.embed import embed, retrieval_features
from handclip_lib.models.adapters import merge_lora
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.files import save_local_dir
from handclip_lib.models.weights import CONFIG
from handclip_lib.params import ParamError
from handclip_lib.schema import Params
from handclip_lib.schema_base import did_you_mean

TABLES = (".csv", ".npz")
_SHOWN = 10  # names in a message


def find_encoder(source: str, pretrained: str = "", variant: str = "") -> Encoder:
    """The encoder that `source` names: a run folder, or whatever `load_encoder` takes.

    pretrained: as in `load_encoder`; variant: which of a run folder's checkpoints/*.pth.
    Raises ParamError where that is not one file, else as `load_encoder`.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not (path / CONFIG).is_file():
        if pretrained:
            raise ParamError(f"{path} is a run folder with weights of its own: no --pretrained")
        return load_encoder(str(_checkpoint(path, variant)))
    if variant:
        raise ParamError(f"--variant chooses among the weights of a run folder; {source} is none")
    return load_encoder(source, pretrained)


def _checkpoint(run: Path, variant: str) -> Path:
    found = {path.stem: path for path in sorted(run.glob("checkpoints/*.pth"))}
    found.pop("prompts", None)  # of stage 3a: no tower
    if not found:
        raise ParamError(
            f"{run} has neither {CONFIG} nor checkpoints/*.pth: it is no model folder, and no run"
            " folder of a notebook that trains"
        )
    if variant not in found and (variant or len(found) > 1):
        wrong = f"no '{variant}'{did_you_mean(variant, found)}; there are" if variant else "choose:"
        raise ParamError(f"{run}/checkpoints: {wrong} --variant {', '.join(found)}")
    return found[variant] if variant else next(iter(found.values()))


def export_model(encoder: Encoder, folder: Path, half: bool = False, force: bool = False) -> str:
    """Write an open_clip local-dir, once plain open_clip has given bit-equal features from it.

    half: weights in float16, at half the size; force: replace an older model. LoRA is added to the
    weights that are written. Returns what to tell the user: what was checked, and two lines of
    Python that load it.
    Raises FileExistsError where something lies, ValueError on a tower that open_clip cannot
    build at this size or with this adapter, RuntimeError where its features differ; an older
    model stays then.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and not force and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: --force replaces a model folder")
    if encoder.adapter is not None:
        encoder = copy.deepcopy(encoder)
        merge_lora(encoder)
    dtype = torch.float16 if half else torch.float32
    lines: list[str] = []
    save_local_dir(encoder, folder, dtype, lambda new: lines.append(_compare(encoder, new, half)))
    name = repr(f"local-dir:{folder}")
    lines += [
        "load it with",
        "    import open_clip",
        f"    model, _, preprocess = open_clip.create_model_and_transforms({name})",
    ]
    return "\n".join([str(folder), *lines, *_not_in_open_clip(encoder)])


def _compare(encoder: Encoder, folder: Path, half: bool) -> str:
    """What plain open_clip makes of the files in `folder`, against what the encoder gives."""
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *encoder.preprocess.size, generator=generator)
    ours = load_encoder(str(folder)) if half else encoder
    with torch.inference_mode():
        exact, written = encoder.features(images).proj, ours.features(images).proj
        given = theirs.eval().visual(images)
    if not torch.equal(given[0] if isinstance(given, tuple) else given, written):
        raise RuntimeError(f"open_clip gives other features than {encoder.name}: nothing is kept")
    if not half:
        return "checked: plain open_clip gives bit-equal features"
    nearest = torch.cosine_similarity(written, exact).min()
    return (
        "checked: plain open_clip gives the features of these half-precision weights, bit by bit;"
        f" their cosine with those of the full ones is {nearest:.6f}"
    )


def _not_in_open_clip(encoder: Encoder) -> Iterator[str]:
    """What the user of the exported folder has to do by hand."""
    if encoder.preprocess.fit != "squash":
        yield (
            f"note: it was trained with fit '{encoder.preprocess.fit}', of which open_clip's own"
            " transform knows only a near relative"
        )
    if encoder.preprocess.mirror_left:
        yield "note: mirror left hands before open_clip's transform, as in training (mirror_left)"


def export_features(
    encoder: Encoder,
    out: Path,
    images: Path,
    feature: Sequence[str] = ("pool", "proj"),
    force: bool = False,
) -> str:
    """Write retrieval features (unit rows) of photographs as `out` (.csv or .npz), all or nothing.

    images: as `read_photographs` takes them; feature: as in `retrieval_features`; force: replace
    an older table. Both kinds hold image, person and aspect (empty where unknown). A CSV has a
    column a dimension, f0, f1, …; an npz the arrays `features` float32 (N, D), `image`, `person`,
    `aspect`, `feature` (names) and `weights_sha256`. Returns what was written, as a line.
    Raises ParamError on another ending, FileExistsError, TableError or StoreError.
    """
    out = Path(out).expanduser().absolute()
    if out.suffix.lower() not in TABLES:
        raise ParamError(f"{out.name}: a table of features ends in {' or '.join(TABLES)}")
    if out.exists() and not force:
        raise FileExistsError(f"{out} is there already: --force replaces it")
    table = read_photographs(images)
    if encoder.preprocess.mirror_left:
        _check_sides(table)
    store = open_store(table, encoder.preprocess)
    raw = embed(encoder, store, table["image"].tolist(), make_fabric(Params()))
    z = retrieval_features(raw, feature)  # (N, D)
    out.parent.mkdir(parents=True, exist_ok=True)
    told = {name: table[name].to_numpy(dtype=str) for name in ("image", "person", "aspect")}
    if out.suffix.lower() == ".npz":
        content = _npz(told, z, feature, encoder.weights_sha256)
    else:
        numbers = pd.DataFrame(z, columns=[f"f{k}" for k in range(z.shape[1])])
        content = pd.concat([pd.DataFrame(told), numbers], axis=1).to_csv(index=False).encode()
    write_whole(out, content)
    persons = table.loc[table["person"] != "", "person"].nunique()
    whose = f" of {quantity(persons, 'person')}" if persons else "; no persons are told apart"
    return (
        f"{out}\n{quantity(len(z), 'photograph')}{whose}; {' + '.join(feature)}, {z.shape[1]} wide"
    )


def _npz(
    told: dict[str, np.ndarray], z: np.ndarray, feature: Sequence[str], weights_sha256: str
) -> bytes:
    file = io.BytesIO()
    facts = {"feature": np.array(feature), "weights_sha256": np.array(weights_sha256)}
    np.savez(file, allow_pickle=False, features=z, **told, **facts)
    return file.getvalue()


def read_photographs(path: Path) -> pd.DataFrame:
    """Photographs whose persons need not be known: columns `image`, `person`, `aspect`, as text.

    path: a folder, read with all its folders; or a CSV with a column `image` (relative to the
    CSV) and perhaps `pid` and `aspect`. A folder with HandInfo.csv is read as 11k Hands. In any
    other one the innermost folder that no aspect is named after is the person, where each
    photograph has one and they are several; a folder named after an aspect says so.
    Raises FileNotFoundError, or TableError with all problems together.
    """
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(f"no photographs at {path}: give a folder or a CSV")
    if (path / "HandInfo.csv").is_file():
        table = read_11k(path)
        return table.assign(person=table["pid"].astype(str))[["image", "person", "aspect"]]
    root = path.parent if path.is_file() else path
    rows, problems = _from_csv(path) if path.is_file() else (_from_folder(root), [])
    problems = problems + check_images(root, [("", row["image"]) for row in rows])
    if not rows and not problems:
        raise TableError(f"{path}: no photographs in it")
    return finish(rows, root, "", problems)


def _from_csv(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    rows, lines, problems = [], [], []
    for line, cells in read_rows(path, ("image",)):
        told = cells.get("aspect", "")
        if told and not aspect_of(told):
            problems.append(f"row {line}: unknown aspect '{told}'{did_you_mean(told, ASPECTS)}")
        if not cells["image"]:
            problems.append(f"row {line}: the cell 'image' is empty")
            continue
        image = Path(os.path.relpath(path.parent / cells["image"], path.parent)).as_posix()
        person = cells.get("pid", "")
        rows.append({"image": image, "person": person, "aspect": aspect_of(told) or ""})
        lines.append(line)
    twice = repeated(zip(lines, (row["image"] for row in rows), strict=True))
    return rows, problems + twice


def _from_folder(root: Path) -> list[dict[str, str]]:
    rows = []
    for image in _pictures(root):
        folders = image.split("/")[:-1]
        others = [folder for folder in folders if not aspect_of(folder)]
        aspects = [name for folder in folders if (name := aspect_of(folder))]
        person, aspect = "".join(others[-1:]), "".join(aspects[-1:])
        rows.append({"image": image, "person": person, "aspect": aspect})
    persons = {row["person"] for row in rows}
    if "" in persons or len(persons) < 2:
        rows = [row | {"person": ""} for row in rows]
    return rows


def _pictures(root: Path) -> list[str]:
    """Paths under root with a picture's suffix, sorted; links are followed, each folder once."""
    suffixes, found, seen = image_suffixes(), [], set()
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        names = [f for f in files if Path(f).suffix.lower() in suffixes and not f.startswith(".")]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    return sorted(found)


def _check_sides(table: pd.DataFrame) -> None:
    """A model whose left hands are mirrored has to be told which these are."""
    unknown = table.loc[~table["aspect"].isin(CHAIN), "image"].tolist()
    if unknown:
        raise TableError(
            f"this model mirrors left hands (mirror_left), and of {len(unknown)} of {len(table)}"
            f" photographs nothing says which hand it is: put them in folders named"
            f" {', '.join(CHAIN)}, or give a CSV with the columns image and aspect",
            listed(unknown, _SHOWN),
        )
