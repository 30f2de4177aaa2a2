"""The system user that PostgreSQL runs as: ourselves, or for root, which PostgreSQL refuses, another."""

import os
import pwd
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tollbook.embedded.errors import NoAccess

SYSTEM_ACCOUNT = "tollbook"
# Where no account can be made (a read-only /etc): PostgreSQL's own, or the one with no rights at all.
SYSTEM_ACCOUNTS_ELSE = ("postgres", "nobody")
CREATE_ATTEMPTS_MAX = 10  # another process may hold the lock of /etc/passwd
CREATE_WAIT_SECONDS = 0.1
CREATE_SECONDS_MAX = 20


@dataclass(frozen=True, slots=True)
class Account:
    """A system user. `switch` is true when we are root and the server must become this user."""

    name: str
    uid: int
    gid: int
    switch: bool

    def take(self, folder: Path) -> None:
        """Make the server's user the owner of a folder that was just made for it. Raises NoAccess."""
        if not self.switch:
            return
        try:
            os.chown(folder, self.uid, self.gid, follow_symlinks=False)
        except OSError as error:
            raise NoAccess(
                f"PostgreSQL refuses to run as root, and this root may not give {folder} to the user "
                f"{self.name} ({error.strerror}). Run Tollbook as an ordinary user, or choose another disk "
                "with --data-dir."
            ) from error


def choose(home: Path, cluster: Path) -> Account:
    """Return the user to run the cluster in the folder `home` as. Raises NoAccess.

    Root runs a cluster as whoever owns it; a new one as the owner of `home`, or where that is root itself
    or nobody known, as the system user `tollbook`, which is made if it is not there: an account without a
    password, a shell or a home.
    """
    if os.geteuid() != 0:
        return _named(os.geteuid(), switch=False)
    if cluster.is_dir() and not cluster.is_symlink():
        owner = cluster.stat().st_uid
        if owner == 0:
            name = _find_or_make_system_account().name
            raise NoAccess(
                f"{cluster} belongs to root, and PostgreSQL refuses to run as root. If it was copied here, "
                f"give it to the server's user: chown -R {name}: {cluster}"
            )
        return _named(owner, switch=True)
    owner = home.stat().st_uid
    if owner == 0 or not _has_name(owner):
        return _find_or_make_system_account()
    return _named(owner, switch=True)


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _named(uid: int, *, switch: bool) -> Account:
    if not _has_name(uid):
        raise NoAccess(
            f"The user id {uid} has no name on this machine, and PostgreSQL knows its callers by name. Add "
            "it to /etc/passwd, run as another user, or set DATABASE_URL to a PostgreSQL of your own."
        )
    entry = pwd.getpwuid(uid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, switch)


def _find_or_make_system_account() -> Account:
    for _ in range(CREATE_ATTEMPTS_MAX):
        if found := _find(SYSTEM_ACCOUNT):
            return found
        if not _make(SYSTEM_ACCOUNT):
            break
    for name in SYSTEM_ACCOUNTS_ELSE:
        if found := _find(name):
            return found
    raise NoAccess(
        f"PostgreSQL refuses to run as root, and the system user {SYSTEM_ACCOUNT} could not be made. Make it "
        f"(`useradd --system {SYSTEM_ACCOUNT}`), or run Tollbook as an ordinary user."
    )


def _find(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, switch=True) if entry.pw_uid != 0 else None


def _make(name: str) -> bool:
    """Try to make a system user. True when it is worth looking for it (again)."""
    command = {
        "useradd": ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", name],
        "adduser": ["-S", "-D", "-H", "-s", "/sbin/nologin", name],  # BusyBox
    }
    for program, arguments in command.items():
        if path := shutil.which(program):
            ran = subprocess.run(
                [path, *arguments], capture_output=True, stdin=subprocess.DEVNULL, timeout=CREATE_SECONDS_MAX
            )
            if ran.returncode != 0:
                time.sleep(CREATE_WAIT_SECONDS)
            return True
    return False
