"""Damaged files are refused before anything of the target is touched."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.backups import NOBODY_THERE, refused
from tollbook.migrate.backup import Backup
from tollbook.migrate.errors import RestoreFailed, ToolMissing
from tollbook.migrate.restore import restore


@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_even_without_its_checksum(made: Backup, share: float) -> None:
    cut = made.path.with_name("cut.dump")
    cut.write_bytes(made.path.read_bytes()[: int(made.size_bytes * share)])
    with refused(RestoreFailed, "is not a whole backup", "Nothing was touched"):
        restore(NOBODY_THERE, cut)


@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_is_refused(made: Backup, share: float, bit: int) -> None:
    bent = bytearray(made.path.read_bytes())
    bent[int(len(bent) * share)] ^= 1 << bit
    path = made.path.with_name("bent.dump")
    path.write_bytes(bent)
    note = made.path.with_name(f"{made.path.name}.json").read_text()
    path.with_name("bent.dump.json").write_text(note.replace(made.path.name, "bent.dump"))
    with refused(RestoreFailed, "is not a whole backup", "Nothing was touched"):
        restore(NOBODY_THERE, path)


def test_data_that_do_not_unpack_are_refused_even_without_a_checksum(made: Backup) -> None:
    content = made.path.read_bytes()
    path = made.path.with_name("torn.dump")
    middle = content.index(b"\x78\x9c") + 200  # in the first compressed rows
    path.write_bytes(content[:middle] + b"\0" * 8 + content[middle + 8 :])
    with refused(RestoreFailed, "is not a whole backup"):
        restore(NOBODY_THERE, path)


def test_a_file_of_a_newer_version_is_told_apart_from_a_damaged_one(made: Backup) -> None:
    newer = made.path.with_name("newer.dump")
    content = made.path.read_bytes()
    newer.write_bytes(content[:5] + bytes([1, 99]) + content[7:])  # the version follows "PGDMP"
    with refused(ToolMissing, "unsupported version (1.99)", "Install a newer one"):
        restore(NOBODY_THERE, newer)


def test_the_whole_file_passes_and_only_then_the_server_is_asked(made: Backup) -> None:
    with refused(RestoreFailed, "onnection"):
        restore(NOBODY_THERE, made.path)
