"""Which weights a user means: a run folder, one of its files, or whatever names a tower."""

from pathlib import Path

from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.weights import CONFIG
from handclip_lib.params import ParamError
from handclip_lib.schema_base import did_you_mean


def find_encoder(source: str, pretrained: str = "", variant: str = "") -> Encoder:
    """The encoder of what `find_weights` finds. Raises as that does, else as `load_encoder`."""
    return load_encoder(find_weights(source, pretrained, variant), pretrained)


def find_weights(source: str, pretrained: str = "", variant: str = "") -> str:
    """The weights file of a run folder; whatever else `source` is, `load_encoder` takes it.

    pretrained: as in `load_encoder`; variant: which of a run folder's checkpoints/*.pth.
    Raises ParamError where that is not one file.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not (path / CONFIG).is_file():
        if pretrained:
            raise ParamError(f"{path} is a run folder with weights of its own: no --pretrained")
        return str(_checkpoint_of(path, variant))
    if variant:
        raise ParamError(f"--variant chooses among the weights of a run folder; {source} is none")
    return source


def _checkpoint_of(run: Path, variant: str = "") -> Path:
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
