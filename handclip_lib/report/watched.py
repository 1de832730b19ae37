"""Snakemake as a child that never outlives who called it: `python watched.py SNAKEMAKE'S WORDS`.

A program that imports nothing of the kit, so that it starts at once. Its standard input is held
open by the caller; when that closes, because the caller wants it or was killed, Snakemake and all
its jobs on this machine are interrupted, and jobs elsewhere cancelled by Snakemake.
"""

import os
import signal
import sys
import threading


def _watch() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGINT)


def main() -> None:
    """Run Snakemake's command line in this process, which leads a group of its own."""
    from snakemake.cli import main as snakemake

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    threading.Thread(target=_watch, daemon=True).start()
    snakemake(sys.argv[1:])


if __name__ == "__main__":
    main()
