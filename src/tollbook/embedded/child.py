"""PostgreSQL's programs as children of this process, under the right user, that do not outlive it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from tollbook.embedded.account import Account
from tollbook.embedded.errors import EmbeddedServerFailed

LAUNCHER = Path(__file__).with_name("launcher.py")
STOP_SECONDS_MAX = 60  # the last checkpoint may have much to write
QUIT_SECONDS_MAX = 15  # an immediate stop kills what remains after five
TEND_SECONDS = 60  # how often the owner looks after the running server's log


def run(program: Sequence[str], account: Account, folder: Path, seconds_max: float) -> tuple[int, str]:
    """Run a program to its end in `folder`, killed with us. Return its exit code and all it said."""
    ran = subprocess.run(
        _command(program, account, signal.SIGKILL, log=""),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds_max,
        start_new_session=True,
    )
    return ran.returncode, ran.stdout.decode(errors="replace")


class Child:
    """A running postmaster that this process started."""

    def __init__(
        self,
        program: Sequence[str],
        account: Account,
        folder: Path,
        log: str,
        *,
        stay: bool,
        tend: Callable[[], None],
    ) -> None:
        """Start it in `folder`. Unless it shall stay, it shuts down when this process ends, in any way.

        What it says is added to the file `log` in that folder, which `tend` keeps small.
        """
        self.starter = os.getpid()
        self.ended = threading.Event()
        command = _command(program, account, 0 if stay else signal.SIGINT, log)
        started: Future[subprocess.Popen[bytes]] = Future()
        # The kernel's death signal follows the thread that forked, not the process: so that thread waits.
        threading.Thread(
            target=self._keep, args=(started, command, folder), name="postgresql", daemon=True
        ).start()
        self.process = started.result()
        threading.Thread(target=self._tend, args=(tend,), name="postgresql-log", daemon=True).start()

    def _keep(self, started: "Future[subprocess.Popen[bytes]]", command: list[str], folder: Path) -> None:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,  # entered before the user changes, so it may lie in a closed folder (root's home)
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches us alone: the server must outlive its users
            )
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(process)
        process.wait()
        self.ended.set()

    def _tend(self, tend: Callable[[], None]) -> None:
        while not self.ended.wait(TEND_SECONDS):
            with suppress(OSError):  # a full disk: there is nothing to copy the log to
                tend()

    def is_ours(self) -> bool:
        """Whether this process started it; a fork of that process did not."""
        return os.getpid() == self.starter

    def stop(self) -> None:
        """Shut down fast and cleanly; if that takes too long, at once (the next start then recovers)."""
        for number, seconds_max in ((signal.SIGINT, STOP_SECONDS_MAX), (signal.SIGQUIT, QUIT_SECONDS_MAX)):
            self.process.send_signal(number)
            if self.ended.wait(seconds_max):
                return
        raise EmbeddedServerFailed(
            f"PostgreSQL (process {self.process.pid}) does not stop; its disk may be stuck. Nothing "
            "committed is lost: once the process is gone, the next start recovers."
        )


def _command(program: Sequence[str], account: Account, death_signal: int, log: str) -> list[str]:
    user = (account.uid, account.gid) if account.switch else (-1, -1)
    numbers = [str(number) for number in (*user, os.getpid(), int(death_signal))]
    return [sys.executable, "-I", "-S", str(LAUNCHER), *numbers, log, *program]
