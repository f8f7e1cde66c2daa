"""Runs the cells of a study in several processes at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmlcl.errors import Preempted, UserError
from jaxmlcl.studies._work import plan


def run_in_processes(
    path: Path, study: Any, folder: Path, words: Sequence[str], jobs: int, only: Sequence[str]
) -> None:
    """Run the cells in several processes, each with its share of the CPU cores.

    Args:
      path: the study's file.
      study: the same, loaded.
      folder: where its cells are kept.
      words: arguments that every process gets.
      jobs: processes at a time.
      only: as in `run_study`.

    Raises:
      UserError: nothing matches `only`, or a process failed; its own message is on stderr.
      Preempted: SIGTERM came; the processes have saved what they could.
    """
    waiting = list(plan(study, folder, only))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares = [cores[i::jobs] for i in range(jobs)]
    running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
    failed: list[str] = []

    def stop(number: int, _: Any) -> None:
        name = signal.Signals(number).name
        raise Preempted(f"stopped by signal {name}; the same command goes on")

    # Without this the processes would go on alone. Only the main thread may ask for signals.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        while waiting or running:
            for place in range(jobs):
                name, process = running.get(place, ("", None))
                if process is not None and process.poll() is not None:
                    del running[place]
                    if process.returncode:
                        failed.append(name)
                if place not in running and waiting and not failed:
                    name = waiting.pop(0)
                    command = [sys.executable, "-m", "jaxmlcl", "reproduce", str(path), *words]
                    command += ["--folder", str(folder), "--no-tables", "--only", name]
                    if len(cores) >= jobs:
                        os.sched_setaffinity(0, shares[place])
                    running[place] = (name, subprocess.Popen(command))
            if failed:
                waiting.clear()
            time.sleep(0.2)
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
        if main:
            signal.signal(signal.SIGTERM, before)
    if failed:
        raise UserError(f"reproduce: {', '.join(failed)} failed; see above")
