"""A process that dies at one of its steps on disk, for what a kill leaves there."""

import os
import signal
import sys

STEPS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "ctypes.dlopen"}


def killed_at(step, act):
    """Do `act` in a copy of this process that is killed at that step, counted from 1; False if it has fewer."""
    if not (child := os.fork()):
        left = step

        def die(event, _):
            nonlocal left
            if event in STEPS:
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        act()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WIFSIGNALED(status), f"it failed by itself at step {step}"
    return status != 0
