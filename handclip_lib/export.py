"""`handclip export`: a tower as open_clip loads it, or a table of the features of photographs."""

import copy
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch

from handclip_lib.data.atomic import write_whole
from handclip_lib.data.check import quantity
from handclip_lib.data.photographs import check_sides, read_photographs
from handclip_lib.data.store import open_store
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.embed import embed, retrieval_features
from handclip_lib.models.adapters import merge_lora
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.files import save_local_dir
from handclip_lib.params import ParamError
from handclip_lib.schema import Params

TABLES = (".csv", ".npz")


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
        check_sides(table)
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
