"""Backups in a bucket of Amazon S3 or of a store that speaks its protocol, streamed there and back.

`obstore` finds address, region and credentials where AWS's own tools do: AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, the role of a machine or a container.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from tollbook.migrate import scratch
from tollbook.migrate.errors import ToolMissing, WrongUsage
from tollbook.migrate.manifest import MANIFEST

if TYPE_CHECKING:
    from obstore.store import S3Store

# A store takes 10,000 parts of an object at most; some are kept for what a dump has more than was thought.
PARTS_MAX = 9_000
PART_BYTES_MIN = 16 << 20
PARTS_AT_ONCE = 3  # in memory: this many parts
READ_BYTES = 4 << 20


def find(text: str) -> Bucket:
    """Return the bucket of s3://BUCKET/PREFIX. Raises WrongUsage, ToolMissing."""
    parts = urlsplit(text)
    if not parts.netloc or parts.username or parts.query:
        raise WrongUsage(
            f"{parts.scheme}://{parts.hostname or ''}: write s3://BUCKET/PREFIX, without secrets."
        )
    if find_spec("obstore") is None:
        raise ToolMissing("Backups in a bucket need the library obstore: pip install 'tollbook[s3]'.")
    from obstore.store import S3Store

    prefix = parts.path.strip("/")
    return Bucket(
        S3Store(parts.netloc, prefix=prefix or None), "/".join(filter(None, (parts.netloc, prefix)))
    )


@contextmanager
def _explained() -> Generator[None]:
    """Turn the library's errors into OSError, one line each."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(_shorten(error)) from None
    except BaseError as error:
        raise OSError(_shorten(error)) from None


def _shorten(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(". :")


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket, or what lies in it under a prefix."""

    store: S3Store
    where: str

    @contextmanager
    def draft(self, name: str, size_bytes: int) -> Generator[ObjectDraft]:
        """Begin a backup. Without its manifest it is none; left without, it is removed again."""
        draft = ObjectDraft(self, name, max(PART_BYTES_MIN, size_bytes // PARTS_MAX))
        try:
            yield draft
        except BaseException:
            for left in (name, name + MANIFEST):
                with suppress(OSError):
                    self.remove(left)
            raise

    def names(self) -> list[str]:
        """Return the names of the objects right under the prefix."""
        import obstore

        with _explained():
            found = obstore.list(self.store)  # pyright: ignore[reportUnknownMemberType]
            return [one["path"] for some in found for one in some if "/" not in one["path"]]

    def size(self, name: str) -> int | None:
        """Return the bytes of an object; None where there is none."""
        import obstore

        with suppress(FileNotFoundError), _explained():
            return obstore.head(self.store, name)["size"]
        return None

    def read(self, name: str) -> Iterator[bytes]:
        """Read an object from end to end."""
        import obstore

        with _explained():
            for chunk in obstore.get(self.store, name).stream(min_chunk_size=READ_BYTES):
                yield bytes(chunk)

    def write(self, name: str, text: bytes) -> None:
        """Write a small object."""
        import obstore

        with _explained():
            obstore.put(self.store, name, text)

    def remove(self, name: str) -> None:
        """Remove an object."""
        import obstore

        with suppress(FileNotFoundError), _explained():
            obstore.delete(self.store, name)

    def locate(self, name: str) -> str:
        """Return the address of an object."""
        return f"s3://{self.where}/{name}"

    def check(self, size_bytes: int) -> list[str]:
        """Return what keeps us from the bucket."""
        try:
            self.names()
        except OSError as error:
            return [
                f"s3://{self.where} cannot be listed: {error}. Check the bucket, AWS_ENDPOINT_URL, "
                "AWS_REGION and the credentials."
            ]
        return []


@dataclass(frozen=True, slots=True)
class ObjectDraft:
    """A backup on its way into a bucket, in parts; the object is there when all of them are."""

    bucket: Bucket
    name: str
    part_bytes: int
    file: BinaryIO | None = None

    def write(self, chunks: Iterable[bytes]) -> None:
        """Upload all of it. What `chunks` raises passes through, and the parts are thrown away."""
        import obstore

        with _explained():
            obstore.put(
                self.bucket.store,
                self.name,
                iter(chunks),
                use_multipart=True,
                chunk_size=self.part_bytes,
                max_concurrency=PARTS_AT_ONCE,
            )

    def read(self) -> Iterator[bytes]:
        """Read back what is stored."""
        return self.bucket.read(self.name)

    def publish(self, manifest: bytes) -> None:
        """Put the manifest beside it, which makes it a backup."""
        self.bucket.write(self.name + MANIFEST, manifest)

    @contextmanager
    def parts(self) -> Generator[Path]:
        """Give a folder among the temporary files."""
        with scratch.temporary("tollbook-dump-") as path:
            yield path
