"""A program for two processes: one is killed, and in that moment a library aborts the other.

launch/local.sh 2 (with JAXMLCL="python tests/distributed/aborting.py")
"""

import ctypes
import os
import signal
import sys

from jaxmlcl.cli.processes import joined, take

with joined(take(sys.argv[1:])[0]) as processes:
    if processes.share(processes.index == 0) and not processes.primary:
        os.kill(os.getpid(), signal.SIGKILL)
    ctypes.CDLL(None).abort()
