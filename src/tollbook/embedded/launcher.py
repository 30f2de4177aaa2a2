"""The program between us and PostgreSQL: it changes the user, ties the child to its parent, and becomes it.

Run as `python -I -S launcher.py UID GID PARENT SIGNAL LOG [NAME=VALUE...] PROGRAM ARGUMENT...`, with the
working folder already entered. The program's path is absolute; before it stands what goes into its
environment. UID -1 keeps the user; SIGNAL 0 lets the program outlive its parent; an empty LOG keeps the
output. A program of its own, because code between fork and exec in a process with threads can hang, and
because the kernel forgets the death signal when the user changes: so it is asked for after that, and exec
keeps it. The log is opened by its owner, so that no link in the folder can lead root elsewhere.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
# Nothing of ours: PGDATA, PGPORT or a foreign library path would change what runs.
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}


def main(arguments: list[str]) -> None:
    """Become the program; never returns."""
    uid, gid, parent, death_signal = (int(argument) for argument in arguments[:4])
    log, *program = arguments[4:]
    environment = dict(ENVIRONMENT)
    while not program[0].startswith("/"):
        name, _, environment[name] = program.pop(0).partition("=")
    libc = ctypes.CDLL(None, use_errno=True)  # now: the next user may not be able to read Python's library
    if uid >= 0:
        _become(uid, gid)
    if log:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
    if death_signal and sys.platform == "linux":
        _die_with(libc, parent, death_signal)
    os.execve(program[0], program, environment)  # noqa: S606 - no shell is what is wanted


def _become(uid: int, gid: int) -> None:
    try:
        os.setgroups([gid])
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        sys.exit(f"cannot become user {uid}: {error}")


def _die_with(libc: ctypes.CDLL, parent: int, death_signal: int) -> None:
    if libc.prctl(PR_SET_PDEATHSIG, death_signal) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the kernel was asked to tell us
        sys.exit("The process that wanted this server is gone.")


if __name__ == "__main__":
    main(sys.argv[1:])
