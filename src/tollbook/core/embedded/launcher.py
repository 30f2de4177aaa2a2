"""The program between us and PostgreSQL: it changes the user, ties the child to its parent, and becomes it.

Run as `python -I -S launcher.py UID GID PARENT SIGNAL PROGRAM ARGUMENT...`, with the working folder already
entered. UID -1 keeps the user; SIGNAL 0 lets the program outlive its parent. A program of its own, because
code between fork and exec in a process with threads can hang, and because the kernel forgets the death
signal when the user changes: so it is asked for after that, and exec keeps it.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the program; never returns."""
    uid, gid, parent, death_signal = (int(argument) for argument in arguments[:4])
    if uid >= 0:
        os.setgroups([gid])
        os.setgid(gid)
        os.setuid(uid)
    if death_signal and sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent:  # it ended before the kernel was asked to tell us
            sys.exit("The process that wanted this server is gone.")
    os.execv(arguments[4], arguments[4:])  # noqa: S606 - no shell is what is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
