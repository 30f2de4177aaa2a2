"""The cluster: the folder with PostgreSQL's data, how it is made, and what it says of its server."""

import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tollbook.embedded import child
from tollbook.embedded.account import Account
from tollbook.embedded.errors import EmbeddedServerFailed, NoAccess, NoSpaceLeft, OtherMajorVersion
from tollbook.embedded.programs import read_version, runnable_binaries
from tollbook.embedded.tuning import render_settings

FOLDER = "postgresql"
NEW = "postgresql.new-"
ADMIN = "postgres"
PORT = 5432  # names the socket file; nothing listens on the network
SOCKET_PATH_BYTES_MAX = 107  # sun_path, less its ending zero
CREATE_SECONDS_MAX = 300
CREATE_FREE_BYTES_MIN = 256 * 2**20
LOG = "server.log"
LOG_BYTES_MAX = 10 * 2**20  # and as much again in the old log
LOG_TAIL_BYTES_MAX = 16 * 1024
LOG_TAIL_LINES = 12
QUIT_SECONDS_MAX = 10
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Note:
    """What postmaster.pid says. A pid alone proves nothing: it may be left over, and the number reused."""

    pid: int
    socket_dir: str
    status: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster's folder and the user it belongs to."""

    folder: Path
    account: Account

    def locate(self) -> str:
        """Return the folder as the server's user can reach it.

        Root's data often lie in a home closed to everyone else. The server enters its folder before it
        changes its user, and knows it as its working folder: so no parent folder must be opened.
        """
        return "/proc/self/cwd" if self.account.switch and sys.platform == "linux" else str(self.folder)

    def program(self, name: str) -> str:
        return str(runnable_binaries(self.account) / name)

    def read_note(self) -> Note | None:
        """Return what postmaster.pid says, or None where there is none (or only its beginning)."""
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        lines += [""] * (8 - len(lines))
        pid = lines[0].removeprefix("-")  # as single-user mode writes it
        return Note(int(pid) if pid.isdigit() else 0, lines[4], lines[7].strip())

    def runs(self, pid: int) -> bool:
        """Whether this process is a PostgreSQL of this cluster. Without /proc: whether it exists at all."""
        if sys.platform != "linux":
            return _exists(pid)
        try:
            program = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
            return program.endswith("/postgres") and os.path.samefile(f"/proc/{pid}/cwd", self.folder)
        except OSError:  # it is gone, or another user's
            return False

    def clear_after_kill(self) -> None:
        """Make way for a new server after one was killed: end its orphans, drop its postmaster.pid.

        A server process in a long computation does not notice that the postmaster is gone and keeps the
        shared memory; and the number in postmaster.pid may by now be another program's, for which
        PostgreSQL would refuse to start. Only for a cluster whose postmaster is known to be gone.
        """
        if sys.platform != "linux":
            return
        deadline = time.monotonic() + QUIT_SECONDS_MAX
        while orphans := [
            pid for name in os.listdir("/proc") if name.isdigit() and self.runs(pid := int(name))
        ]:
            if time.monotonic() > deadline:
                raise EmbeddedServerFailed(
                    f"Processes {orphans} of a killed server still use {self.folder}. End them (`kill -9`) "
                    "and start again; nothing committed is lost."
                )
            for pid in orphans:
                _signal(pid, signal.SIGQUIT)
            time.sleep(POLL_SECONDS)
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def configure(self, memory_bytes: int) -> None:
        """Write the server's settings and who may enter: the server's own user and root, as any role."""
        names = ["root", self.account.name]
        users = "".join(f'tollbook "{name}" all\n' for name in dict.fromkeys(names))
        header = "# Written by tollbook at every start. To change a setting for good, use ALTER SYSTEM.\n"
        self.write("postgresql.conf", (header + render_settings(memory_bytes)).encode())
        self.write("pg_hba.conf", (header + "local all all peer map=tollbook\n").encode())
        self.write("pg_ident.conf", (header + users).encode())

    def write(self, name: str, content: bytes) -> None:
        """Replace a file of the cluster. For root it is another user's folder: no link leads it elsewhere."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            new = f"{name}.new"
            if new in os.listdir(folder):
                os.unlink(new, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(new, flags, 0o600, dir_fd=folder), "wb") as file:
                file.write(content)
                if self.account.switch:
                    os.fchown(file.fileno(), self.account.uid, self.account.gid)
            os.replace(new, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)

    def choose_socket_dir(self) -> tuple[Path, str]:
        """Return the socket's folder as clients reach it, and as the server does.

        It is inside the cluster, closed to other users. Where that makes a path the kernel refuses, it is
        a folder under /tmp, as closed, remembered in the cluster so that it is used again.
        """
        inside = self.folder / "socket"
        if _socket_fits(inside):
            inside.mkdir(mode=0o700, exist_ok=True)
            self.account.take(inside)  # always: a kill may have come between the two
            return inside, "socket"
        remembered = self.folder / "socket_dir"
        if remembered.is_file():
            short = Path(remembered.read_text())
            if short.parent == Path("/tmp") and self._is_closed(short):  # noqa: S108 - made by mkdtemp
                return short, str(short)
        short = Path(tempfile.mkdtemp(prefix="tollbook-", dir="/tmp"))
        self.account.take(short)
        self.write("socket_dir", os.fsencode(short))
        return short, str(short)

    def _is_closed(self, folder: Path) -> bool:
        try:
            found = folder.lstat()
        except FileNotFoundError:
            return False
        return (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == self.account.uid
            and not stat.S_IMODE(found.st_mode) & 0o077
        )

    def measure_log(self) -> int:
        """Return the log's length in bytes."""
        try:
            return (self.folder / LOG).lstat().st_size
        except FileNotFoundError:
            return 0

    def rotate_log(self) -> None:
        """Keep the log small: past its bound it becomes the old log, in the place of that one."""
        if self.measure_log() <= LOG_BYTES_MAX:
            return
        with open(os.open(self.folder / LOG, os.O_RDWR | os.O_NOFOLLOW), "r+b") as log:
            log.seek(-LOG_BYTES_MAX, os.SEEK_END)
            self.write(f"{LOG}.old", log.read())
            log.truncate(0)  # not renamed: the server has it open

    def read_log(self, offset: int) -> str:
        """Return the end of what the server said after `offset`."""
        try:
            with (self.folder / LOG).open("rb") as log:
                log.seek(max(offset, self.measure_log() - LOG_TAIL_BYTES_MAX))
                return log.read(LOG_TAIL_BYTES_MAX).decode(errors="replace")
        except FileNotFoundError:
            return ""


def check(cluster: Path) -> None:
    """Refuse a cluster of another major version of PostgreSQL."""
    found = (cluster / "PG_VERSION").read_text().strip()
    ours = read_version().partition(".")[0]
    if found != ours:
        raise OtherMajorVersion(cluster, found, ours)


def create(home: Path, account: Account, *, sync: bool) -> Cluster:
    """Make a cluster in the folder `home`: in a new folder, renamed when complete: whole or absent."""
    for left in home.glob(f"{NEW}*"):
        _discard(Cluster(left, account))
    free = shutil.disk_usage(home).free
    if free < CREATE_FREE_BYTES_MIN:
        raise NoSpaceLeft(home, free)
    new = Cluster(Path(tempfile.mkdtemp(prefix=NEW, dir=home)), account)
    try:
        account.take(new.folder)
        _initdb(new, sync=sync)
        os.rename(new.folder, home / FOLDER)
    except BaseException:
        _discard(new)
        raise
    _sync(home)
    return Cluster(home / FOLDER, account)


def _discard(new: Cluster) -> None:
    new.clear_after_kill()  # initdb's own child may still be writing
    shutil.rmtree(new.folder, ignore_errors=True)


def _initdb(cluster: Cluster, *, sync: bool) -> None:
    arguments = {
        "pgdata": cluster.locate(),
        "username": ADMIN,
        "encoding": "UTF8",
        "locale": "C",
        "locale-provider": "builtin",
        "builtin-locale": "C.UTF-8",
        "auth": "reject",  # until configure() says who may enter
    }
    program = [cluster.program("initdb"), *(f"--{name}={value}" for name, value in arguments.items())]
    program += ["--data-checksums", *([] if sync else ["--no-sync"])]
    code, said = child.run(program, cluster.account, cluster.folder, CREATE_SECONDS_MAX)
    if code != 0:
        raise explain(
            f"PostgreSQL could not make its data folder in {cluster.folder.parent}", cluster.folder, said
        )


def explain(what: str, folder: Path, said: str) -> EmbeddedServerFailed:
    """Return the failure that fits what PostgreSQL said, with what to do next."""
    if "No space left on device" in said:
        return NoSpaceLeft(folder, shutil.disk_usage(folder.parent).free)
    if "cannot become user" in said:
        return NoAccess(
            f"{what}: PostgreSQL refuses to run as root, and this root may not become "
            f"another user ({said.strip()}). Run Tollbook as an ordinary user, or with the capabilities "
            "SETUID and SETGID."
        )
    tail = "\n".join(said.splitlines()[-LOG_TAIL_LINES:]) or "nothing"
    if "ermission denied" in said or "wrong ownership" in said:
        return NoAccess(f"{what}: a file or folder is closed to the server's user. It said:\n{tail}")
    advice = "Look at the lines below, which are the end of its log"
    if "unrecognized configuration parameter" in said or "invalid value for parameter" in said:
        advice = "Correct the setting named below"
    elif "could not map anonymous shared memory" in said or "Cannot allocate memory" in said:
        advice = "Free some memory, or set a smaller shared_buffers"
    return EmbeddedServerFailed(f"{what}. {advice}, and try again.\n{tail}")


def _socket_fits(folder: Path) -> bool:
    return len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_BYTES_MAX


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
