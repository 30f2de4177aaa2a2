"""The installation's secret key: found, made once, refused where it is not safe, and never shown."""

import errno
import re
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tollbook.core.secret_key import SecretKeyUnusable, find_secret_key
from tollbook.core.settings import Settings

KEY = "5a" * 32


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment."""
    for name in ("TOLLBOOK_SECRET_KEY", "TOLLBOOK_SECRET_KEY_FILE", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_beside_the_embedded_database_it_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    with ThreadPoolExecutor(8) as many:
        found = set(many.map(lambda _: find_secret_key(settings), range(16)))
    assert len(found) == 1
    assert len(found.pop()) == 32
    [file] = (tmp_path / "data").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_where_it_cannot_be_made_it_is_said_how_to_make_it_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as file systems without hard links do

    with monkeypatch.context() as patch:
        patch.setattr("os.link", refuse)
        with pytest.raises(SecretKeyUnusable, match="openssl rand -hex 32") as refused:
            find_secret_key(Settings(data_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []
    advice = re.search(r"`(.*)`", refused.value.sentence)
    assert advice is not None
    subprocess.run(advice[1], shell=True, check=True)
    assert len(find_secret_key(Settings(data_dir=tmp_path))) == 32
    (tmp_path / "file").touch()
    with pytest.raises(SecretKeyUnusable, match="Not a directory"):
        find_secret_key(Settings(data_dir=tmp_path / "file" / "data"))


def test_in_memory_it_is_this_processes() -> None:
    settings = Settings(storage="memory")
    assert find_secret_key(settings) == find_secret_key(settings)


def test_it_may_be_given_by_the_environment_or_by_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLBOOK_SECRET_KEY", KEY)
    assert find_secret_key(Settings()) == bytes.fromhex(KEY)
    monkeypatch.delenv("TOLLBOOK_SECRET_KEY")
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    monkeypatch.setenv("TOLLBOOK_SECRET_KEY_FILE", str(file))
    assert find_secret_key(Settings()) == bytes.fromhex(KEY)
    file.chmod(0o644)
    with pytest.raises(SecretKeyUnusable, match="chmod 600"):
        find_secret_key(Settings())


def test_for_a_database_of_ones_own_it_is_asked_for_and_not_made(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path).model_copy(update={"database_url": "postgresql://db/books"})
    with pytest.raises(SecretKeyUnusable, match="openssl rand -hex 32"):
        find_secret_key(settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["", "5a", KEY + "5a", "z" * 64, "secret words"])
def test_what_is_no_key_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("TOLLBOOK_SECRET_KEY", wrong)
    with pytest.raises(SecretKeyUnusable) as refused:
        find_secret_key(Settings())
    assert not wrong or wrong not in str(refused.value)
