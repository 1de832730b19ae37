"""The command `handclip`: runs, studies and what belongs to them. Errors are one clear message."""

import argparse
import io
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from handclip_lib import __version__
from handclip_lib.aspects import ASPECTS, CHAIN
from handclip_lib.params import ParamError, load, other_data
from handclip_lib.report.searching import COMMANDS as SEARCHES
from handclip_lib.schema import Params
from handclip_lib.schema_base import did_you_mean
from handclip_lib.study_file import ROOT, read_value

DEMO = "demo"
# Each command imports its own part: notebooks, figures and models take seconds to import


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0, 1 failed, 2 wrongly asked, 130 stopped."""
    asked = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # progress is seen in a log file, too
    for number in (signal.SIGTERM, signal.SIGHUP):  # from batch systems, a closed terminal
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup wants it ignored
            signal.signal(number, _stop)  # children are ended too
    try:
        return int(asked.does(asked))
    except KeyboardInterrupt:
        print("handclip: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if asked.debug:
            traceback.print_exc()
        else:
            print(f"handclip: {error}", file=sys.stderr)
        return 2 if isinstance(error, ParamError | FileNotFoundError) else 1


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Parser(argparse.ArgumentParser):
    """argparse that suggests the nearest command for a misspelt one."""

    def error(self, message: str) -> Any:
        """Say what is wrong, with a suggestion, and exit with status 2."""
        if message.startswith("argument COMMAND: invalid choice: "):
            word = message.split("'")[1]
            message = f"no command '{word}'{did_you_mean(word, COMMANDS)}"
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="handclip", description="Identify persons from photographs of hands.")
    parser.add_argument("--version", action="version", version=f"handclip {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (does, arguments, words) in COMMANDS.items():
        command = commands.add_parser(name, help=words, description=words)
        for flags, settings in arguments:
            command.add_argument(*flags, **settings)
        command.add_argument("--debug", action="store_true", help="show the whole traceback")
        command.set_defaults(does=does)
    return parser


def _run(asked: argparse.Namespace) -> int:
    from handclip_lib.report.notebook import run_notebook

    parameters = {name: getattr(asked, name) for name in ("aspect", "study", "seed", "tag")}
    parameters["overrides"] = _overrides(asked.set) or None
    given = {name: value for name, value in parameters.items() if value is not None}
    run_notebook(asked.notebook, given, index=not asked.no_index)
    return 0


def _overrides(settings: Sequence[str]) -> dict[str, Any]:
    overrides = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals):
            raise ParamError(f"--set {setting}: write it as key=value, such as stage2.lr=1e-5")
        overrides[key.strip()] = read_value(text, f"--set {setting}: the value")
    return overrides


def _study(asked: argparse.Namespace) -> int:
    from handclip_lib.report.study import run_study

    return run_study(
        asked.study,
        asked.notebooks,
        asked.aspects,
        asked.seeds,
        jobs=asked.cores,
        force=asked.force,
        dry_run=asked.dry_run,
        executor=asked.executor,
        gpus=asked.gpus,
    )


def _index(asked: argparse.Namespace) -> int:
    from handclip_lib.report.index import write_index

    print(write_index(load(study=asked.study)))
    return 0


def _demo_data(asked: argparse.Namespace) -> int:
    from handclip_lib.data.tables import draw

    demo = load(study=DEMO)
    sets = [demo.data, *(other.data for other in other_data(demo).values())]
    kinds = {(one.drawn.layout, one.drawn.laboratory): one for one in reversed(sets)}
    usual = kinds.get((asked.layout, asked.laboratory), Params().data)
    told = ("persons", "seed", "shots", "layout", "laboratory")
    said = {key: getattr(asked, key) for key in told if getattr(asked, key) is not None}
    root = str(Path(asked.root).absolute()) if asked.root else usual.root
    change = {"root": root, "drawn": usual.drawn.model_dump() | said}
    print(f"drawn hands: {draw(load(study=DEMO, overrides={'data': change}).data, asked.workers)}")
    return 0


def _demo(asked: argparse.Namespace) -> int:
    from handclip_lib.report.study import run_study
    from handclip_lib.train.pretrain import NOTEBOOK

    started = time.monotonic()
    names = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    books = [name for name in names if name != NOTEBOOK]  # for its minutes; `study demo` has it
    brief = ["00_splits", "01_baseline"]
    status = run_study(
        DEMO, books, asked.aspects, [0], jobs=asked.cores, force=asked.force, others=brief
    )
    print(f"the demo took {time.monotonic() - started:.0f} s in all")
    return status


def _doctor(_asked: argparse.Namespace) -> int:
    from handclip_lib import doctor

    return doctor.main()


def _bench(asked: argparse.Namespace) -> int:
    from handclip_lib.bench.table import bench

    print(bench(asked.study).to_string(float_format="{:.3g}".format, na_rep=""))
    return 0


def _export(asked: argparse.Namespace) -> int:
    from handclip_lib import export
    from handclip_lib.models.run_weights import find_encoder

    target, table = asked.target, asked.target.lower().endswith(export.TABLES)
    if table and not asked.images:
        raise ParamError(f"{target}: features of which photographs? --images FOLDER or CSV")
    if asked.images and asked.half:
        raise ParamError("--half is for a model's weights; a table of features is always float32")
    if asked.feature and not asked.images:
        raise ParamError("--feature is for a table of features: say --images, too")
    encoder = find_encoder(asked.source, asked.pretrained, asked.variant)
    if asked.images:
        feature = asked.feature or Params().evaluation.feature
        print(export.export_features(encoder, target, asked.images, feature, asked.force))
    else:
        print(export.export_model(encoder, target, asked.half, asked.force))
    return 0


def _export_tree(asked: argparse.Namespace) -> int:
    from handclip_lib.data import legacy, splits, tables

    p = load(asked.aspect, asked.study)
    table = tables.read(p)
    legacy.export_tree(splits.manifest_for(p, table), table.attrs["root"], asked.folder)
    print(asked.folder)
    return 0


_SET_WORDS = "one parameter, such as stage2.lr=1e-5; say --set again for another"
_SET = {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": _SET_WORDS}
_STUDY = (("study",), {"metavar": "STUDY", "help": "a file in params/, or a path to a YAML"})
_ASPECT = {"metavar": "ASPECT"}  # `load` checks it, with a suggestion
_ASPECTS = (("--aspects",), _ASPECT | {"nargs": "+", "help": f"e.g. {' '.join(CHAIN)}"})
_CORES = (("--cores",), {"type": int, "metavar": "N", "help": "runs at a time"})
_FORCE_WORDS = (
    "run what was done before, too: needed after replacing photographs, their metadata or weights"
    " files under their old names (other parameters, notebooks and code are noticed)"
)
_FORCE = (("--force",), {"action": "store_true", "help": _FORCE_WORDS})
_SOURCE = "a weights file, a run folder, a model folder, or a tower's name"
_VARIANT = "which weights of a run folder that holds several"
_PRETRAINED = "the weights of an open_clip name: a tag or a file"
_IMAGES = "photographs: a folder, or a CSV with a column image (and pid, aspect)"
_FEATURES = ("penult", "pool", "proj")
_JOINED = "joined into one unit row (default: pool proj)"
_DRY_WORDS = "only say what would be run, and how long that may take"
_EXECUTOR = "local, gpus, slurm or kubernetes (profiles/), or a profile's folder"
_NOTEBOOKS = "default: the study's, else all"
_SHOTS = "plain photographs an aspect (default: the demo study's)"
_ROOT = {"default": "", "help": "the folder (default: one in data/ for each kind of set)"}
_LAYOUT = "11k: four aspects; hd: right backs, in HD's folders, with persons who only distract"
_LABORATORY = "white_table, or other: another camera, light, cloth, and older persons"
COMMANDS: dict[str, tuple[Any, list[tuple[tuple[str, ...], dict[str, Any]]], str]] = {
    "run": (
        _run,
        [
            (("notebook",), {"metavar": "NOTEBOOK", "help": "02_stage1, 02, or a path"}),
            (("--aspect",), _ASPECT | {"help": ", ".join(ASPECTS)}),
            (("--study",), {"help": "a file in params/, or a path"}),
            (("--seed",), {"type": int}),
            (("--tag",), {"help": "a variant of the study, or the name of a run of your own"}),
            (("--set",), _SET),
            (("--no-index",), {"action": "store_true", "help": "leave index.html as it is"}),
        ],
        "run one notebook into its run folder and write report.html; what is not given here counts"
        " as the notebook's parameters cell says",
    ),
    "study": (
        _study,
        [
            _STUDY,
            _ASPECTS,
            (("--seeds",), {"nargs": "+", "type": int, "help": "default: the study's, else 0"}),
            (("--notebooks",), {"nargs": "+", "metavar": "NOTEBOOK", "help": _NOTEBOOKS}),
            _CORES,
            (("--dry-run",), {"action": "store_true", "help": _DRY_WORDS}),
            (("--executor",), {"default": "local", "metavar": "PROFILE", "help": _EXECUTOR}),
            (("--gpus",), {"metavar": "0,1", "help": "GPUs of this machine, one run on each"}),
            _FORCE,
        ],
        "run all notebooks of a study (and its variants) that are not done yet, and write its"
        " index.html",
    ),
    "demo": (
        _demo,
        [_ASPECTS, _CORES, _FORCE],
        "draw the demonstration data, run its study and write its index.html: every notebook but"
        " pre-training for the first aspect, splits and baseline for the others",
    ),
    "demo-data": (
        _demo_data,
        [
            (("--root",), _ROOT),
            (("--persons",), {"type": int, "help": "default: the demo study's"}),
            (("--seed",), {"type": int, "help": "default: the demo study's"}),
            (("--shots",), {"type": int, "nargs": 2, "metavar": ("FROM", "TO"), "help": _SHOTS}),
            (("--layout",), {"default": "11k", "metavar": "11k|hd", "help": _LAYOUT}),
            (("--laboratory",), {"default": "white_table", "metavar": "NAME", "help": _LABORATORY}),
            (("--workers",), {"type": int, "default": None, "help": "processes at a time"}),
        ],
        "draw the demonstration data: hands of persons that don't exist",
    ),
    "index": (_index, [_STUDY], "write a study's index.html from its metrics.json files"),
    "export": (
        _export,
        [
            (("source",), {"metavar": "SOURCE", "help": _SOURCE}),
            (("target",), {"metavar": "FOLDER|OUT.csv|OUT.npz", "help": "what to make"}),
            (("--variant",), {"default": "", "metavar": "NAME", "help": _VARIANT}),
            (("--pretrained",), {"default": "", "metavar": "TAG", "help": _PRETRAINED}),
            (("--half",), {"action": "store_true", "help": "weights in half precision"}),
            (("--images",), {"metavar": "FOLDER|CSV", "help": _IMAGES}),
            (("--feature",), {"nargs": "+", "choices": _FEATURES, "help": _JOINED}),
            (("--force",), {"action": "store_true", "help": "replace what an export made before"}),
        ],
        "write a tower as a folder that open_clip loads, checked bit by bit; or, with --images,"
        " a table of the features of photographs",
    ),
    "export-tree": (
        _export_tree,
        [
            _STUDY,
            (("folder",), {"metavar": "FOLDER", "help": "the tree to make"}),
            (("--aspect",), _ASPECT | {"help": "default: the study's"}),
        ],
        "write a split as the folders train_val_test_split_<aspect> of symbolic links",
    ),
    "bench": (
        _bench,
        [(("--study",), {"default": "smoke", "help": "whose photographs (%(default)s)"})],
        "time the kit against the plain way, as ratios in one run",
    ),
    **SEARCHES,
    "doctor": (_doctor, [], "say what is installed, found and missing, and what mends it"),
}

if __name__ == "__main__":
    sys.exit(main())
