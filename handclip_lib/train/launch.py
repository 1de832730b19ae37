"""One process a device for one training: started, followed, and ended together.

A process that has used its device cannot fork, so a notebook starts others:
`python -m handclip_lib.train.launch FOLDER RANK`, with the work as a pickle in FOLDER.
"""

import codecs
import os
import pickle
import select
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import torch

from handclip_lib.data.atomic import write_whole
from handclip_lib.device import join_fabric
from handclip_lib.schema import Params

_WORK, _RESULT, _MEET = "work.pickle", "result.pt", "meet"
_WAIT = 0.1  # seconds between two looks at the processes
_BAR = "10"  # seconds between two lines of a progress bar, which is no terminal's


def in_ranks(p: Params, work: Callable[[lf.Fabric], Any], folder: Path) -> Any:
    """What `work(fabric)` returns in rank 0 of `p.device.devices` processes.

    work: a function of a module, or a `functools.partial` of one, that can be pickled; it returns
    tensors and plain values. folder: anew, for what the processes exchange; removed at the end.
    What rank 0 prints is printed here. An error in any rank ends all and is raised here, with the
    rank's traceback as a note; RuntimeError where a process was ended from outside. However this
    process ends, the others end with it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _WORK).write_bytes(pickle.dumps((p, work)))
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(p.device.devices):
            ranks.append(_started(folder, rank))
        _follow(ranks, folder)
        return torch.load(folder / _RESULT, weights_only=True)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
        shutil.rmtree(folder)


def _started(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    """A rank's process. Its input is never written to: its end says that this process is gone."""
    told = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "PYTHONUNBUFFERED": "1"}
    told |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TQDM_MININTERVAL": _BAR}
    with _errors(folder, rank).open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "handclip_lib.train.launch", str(folder), str(rank)],
            env=os.environ | told,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
            stderr=errors if rank else subprocess.STDOUT,
            start_new_session=True,  # an interrupt is for this process, which ends them
        )


def _errors(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.stderr"


def _follow(ranks: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Pass on what rank 0 prints until all have ended well; raise what went wrong in one."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        failed = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
        codes = [process.poll() for process in ranks]  # who broke off comes before who noticed it
        said = _said(ranks[0])
        print(decoder.decode(said), end="", flush=True)
        if failed or any(codes):
            raise _error(failed or sorted(folder.glob("*.error")), codes, folder)
        if not said:
            if all(code == 0 for code in codes):
                return
            time.sleep(_WAIT)


def _said(process: subprocess.Popen[bytes]) -> bytes:
    """What a process has printed since, without waiting for it."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 0)
    return os.read(process.stdout.fileno(), 1 << 20) if ready else b""


def _error(failed: Sequence[Path], codes: Sequence[int | None], folder: Path) -> Exception:
    """Whose failure it was: of the one who was killed, else of the first to fail."""
    killed = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
    if not failed or killed:
        rank = (killed or [r for r, code in enumerate(codes) if code])[0]
        code = codes[rank] or 0
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = _errors(folder, rank).read_text(errors="replace")[-2000:]
        return RuntimeError(f"process {rank} of {len(codes)} of this training {how}\n{last}")
    error, note = pickle.loads(failed[0].read_bytes())
    error.add_note(note)
    assert isinstance(error, Exception)
    return error


def _tell(folder: Path, rank: int, error: Exception) -> None:
    """Leave an error where the starting process finds it; one that has no pickle as its text."""
    note = f"in rank {rank}:\n{''.join(traceback.format_exception(error))}"
    try:
        told = pickle.dumps((error, note))
        pickle.loads(told)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError):
        told = pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), note))
    write_whole(folder / f"{rank}.error", told)


def _end_with_starter() -> None:
    """Wait for the end of the input: the process that started this one is gone."""
    os.read(0, 1)
    os._exit(1)


def main(folder: Path, rank: int) -> None:
    """A rank's work, as `in_ranks` left it in `folder`."""
    threading.Thread(target=_end_with_starter, daemon=True).start()
    try:
        p, work = pickle.loads((folder / _WORK).read_bytes())
        made = work(join_fabric(p, folder / _MEET))
        if rank == 0:
            torch.save(made, folder / _RESULT)
    except Exception as error:
        _tell(folder, rank, error)
        raise SystemExit(1) from error
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
