"""A run of a study as a job of its own: it may have a GPU to itself, and says what became of it.

A program that imports nothing of the kit, so that it starts at once: `python node.py PLAN RUN
THREADS`. Beside the plan it leaves runs/RUN.start, then RUN.json where the run succeeded,
RUN.failed where it failed, and neither where it was stopped. Whoever stops it, or the program that
called it, ends the run in order.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_ENDING_S = 20  # for a run to end its kernel before it is killed, or for an earlier one to end


def main(arguments: Sequence[str]) -> int:
    """Carry out one run of a plan; returns its exit status, 130 where it was stopped."""
    path, key, threads = Path(arguments[0]), arguments[1], arguments[2]
    plan = json.loads(path.read_text(encoding="utf-8"))
    run, place = plan["runs"][key], path.parent / "runs"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        _wait_for(Path(run["folder"]) / ".lock")
        with gpus(plan["gpus"], run["gpu"], Path(plan["locks"])) as mine:
            env = dict.fromkeys(_THREADS, threads) | os.environ
            if mine:
                env["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
            _write(place / f"{key}.start", {"gpus": list(mine), "host": socket.gethostname()})
            since = time.monotonic()
            status = _carried_out(run["command"], env, list(mine.values()))
    except KeyboardInterrupt:
        return 130
    seconds = round(time.monotonic() - since, 2)
    if not status:
        _complete(Path(run["folder"]) / "stamp.json", seconds)
    ending = "failed" if status else "json"
    _write(place / f"{key}.{ending}", {"status": status, "seconds": seconds})
    return status


@contextmanager
def gpus(known: Sequence[str], count: int, locks: Path) -> Iterator[dict[str, int]]:
    """{GPU: its lock, an open file} of `count` known ones that no other run here has; waits.

    Empty where none are known: then the run sees what the machine shows it. The system lets go of a
    lock when whoever has its file open has ended: the run is given it, so that a GPU stays taken
    while a run lives whose caller was killed. Raises ValueError where `count` are not known.
    """
    if known and count > len(known):
        raise ValueError(f"a run wants {count} GPUs, and there are {len(known)}")
    held: dict[str, int] = {}
    host = socket.gethostname()
    locks.mkdir(parents=True, exist_ok=True)
    try:
        while known and len(held) < count:
            with FileLock(locks / f"{host}.lock"):  # all that it needs, or none
                held = _free(known, count, locks, host)
            if len(held) < count:
                _release(held)
                held = {}
                time.sleep(0.5)
        yield held
    finally:
        _release(held)


def _free(known: Sequence[str], count: int, locks: Path, host: str) -> dict[str, int]:
    held = {}
    for gpu in known:
        lock = os.open(locks / f"{host}-{gpu}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        held[gpu] = lock
        if len(held) == count:
            break
    return held


def _release(held: Mapping[str, int]) -> None:
    for lock in held.values():
        os.close(lock)


def _wait_for(lock: Path) -> None:
    """Some seconds for a run that is just ending; a longer one is the run's own error."""
    if not lock.is_file():
        return
    try:
        FileLock(lock).acquire(timeout=_ENDING_S).lock.release()
    except Timeout:
        print(f"still held: {lock}", flush=True)


def _carried_out(command: Sequence[str], env: Mapping[str, str], locks: Sequence[int]) -> int:
    """The command's exit status; it ends when this is stopped or has lost who called it."""
    parent = os.getppid()
    child = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=locks
    )
    try:
        while True:
            try:
                return child.wait(1.0)
            except subprocess.TimeoutExpired:
                if os.getppid() != parent:
                    raise KeyboardInterrupt from None
    except KeyboardInterrupt:
        child.terminate()
        try:
            child.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            child.kill()
        raise


def _stop(_signal: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # once is enough: the run is being ended
    raise KeyboardInterrupt


def _complete(stamp: Path, seconds: float) -> None:
    """Add what the run took in all, imports and report included, for later estimates."""
    if stamp.is_file():
        told = json.loads(stamp.read_text(encoding="utf-8"))
        _write(stamp, told | {"whole_seconds": seconds})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
