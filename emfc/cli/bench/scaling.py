"""Compiling very long programs, each in a process of its own, for its time and its peak of memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from emfc.cli.bench.figures import COMPILE, Figure

__all__ = ["LONG_PROGRAMS", "compile_alone"]

LONG_PROGRAMS = ("chain", "tree")


def compile_alone(program: str, sites: int) -> Figure:
    """Compile a long program in a fresh process.

    Args:
        program: One of `LONG_PROGRAMS`.
        sites: Number of its sites.

    Returns:
        Processor seconds of parsing and compiling, and the peak of the process's memory.

    Raises:
        RuntimeError: The process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "emfc.cli.bench.scaling", program, str(sites)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = done.stderr.strip().splitlines()
        raise RuntimeError(f"compiling {program} of {sites} sites failed: {told[-1] if told else done.returncode}")
    found = json.loads(done.stdout)
    return Figure(program, COMPILE, sites, 0, found["seconds"], peak=found["peak"])


def _peak() -> int | None:
    """The most memory that this process has held, in bytes, where the system tells.

    ``getrusage`` would count what the process was forked from.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), flags=re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def _main(program: str, sites: int) -> None:
    import torch

    from emfc.cli.bench import programs
    from emfc.compiler import compile as compile_program

    torch.set_num_threads(1)
    model = {"chain": programs.brownian, "tree": programs.tree}[program]
    compile_program(model, 10)
    began = time.process_time()
    compile_program(model, sites)
    print(json.dumps({"seconds": time.process_time() - began, "peak": _peak()}))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
