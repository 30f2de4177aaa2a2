"""The age format, version 1 (age-encryption.org/v1): files that anybody's `age` opens with the same secret.

Its primitives are those of `cryptography`; what is here is the layout: a header that wraps a file key for one
recipient, then the content in chunks of 64 KiB, each sealed, numbered and the last one marked.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

VERSION = b"age-encryption.org/v1"
CHUNK_BYTES = 64 * 1024
TAG_BYTES = 16
FILE_KEY_BYTES = 16
NONCE_BYTES = 16
HEADER_BYTES_MAX = 64 * 1024
RECIPIENTS_MAX = 64  # stanzas of a header that are looked at
COLUMNS = 64  # a stanza's body is wrapped here
WORK_FACTOR = 18  # scrypt's N is 2 to this: 256 MiB and about a second, as age's own
WORK_FACTOR_MAX = 20  # of a file we read: a hostile one shall not take all memory
PUBLIC, SECRET = "age", "age-secret-key-"


class NotDecrypted(Exception):
    """The secret does not open the file, or the file was changed."""


@dataclass(frozen=True, slots=True)
class Passphrase:
    """A secret that people remember; stretched by scrypt."""

    words: str = field(repr=False)

    def wrap(self, file_key: bytes) -> bytes:
        """Return the stanza that hides the file key."""
        salt = os.urandom(16)
        key = self._stretch(salt, WORK_FACTOR)
        return _write_stanza(["scrypt", _encode(salt), str(WORK_FACTOR)], _seal_key(key, file_key))

    def unwrap(self, arguments: list[str], body: bytes) -> bytes | None:
        """Return the file key of a stanza; None where it is not for this secret."""
        if len(arguments) != 3 or arguments[0] != "scrypt":
            return None
        factor = int(arguments[2]) if arguments[2].isdigit() else WORK_FACTOR_MAX + 1
        if factor > WORK_FACTOR_MAX:
            raise NotDecrypted(f"its work factor of {arguments[2]} would take too much memory")
        return _open_key(self._stretch(_decode(arguments[1]), factor), body)

    def _stretch(self, salt: bytes, factor: int) -> bytes:
        n = 1 << factor
        return hashlib.scrypt(
            self.words.encode(),
            salt=VERSION + b"/scrypt" + salt,
            n=n,
            r=8,
            p=1,
            maxmem=n * 1024 + 2**20,  # what scrypt needs, and no more than OpenSSL can be told
            dklen=32,
        )


@dataclass(frozen=True, slots=True)
class Recipient:
    """A public key (age1…): it encrypts, and cannot decrypt."""

    public: bytes

    def wrap(self, file_key: bytes) -> bytes:
        """Return the stanza that hides the file key."""
        from cryptography.hazmat.primitives.asymmetric import x25519

        ephemeral = x25519.X25519PrivateKey.generate()
        share = ephemeral.public_key().public_bytes_raw()
        secret = ephemeral.exchange(x25519.X25519PublicKey.from_public_bytes(self.public))
        key = _derive(secret, share + self.public, VERSION + b"/X25519")
        return _write_stanza(["X25519", _encode(share)], _seal_key(key, file_key))

    def unwrap(self, arguments: list[str], body: bytes) -> bytes | None:
        """A public key opens nothing."""
        return None

    def __str__(self) -> str:
        return _write_bech32(PUBLIC, self.public)


@dataclass(frozen=True, slots=True)
class Identity:
    """A secret key (AGE-SECRET-KEY-1…): it encrypts to its own public key, and decrypts."""

    secret: bytes = field(repr=False)

    @property
    def recipient(self) -> Recipient:
        """The public key that belongs to it."""
        from cryptography.hazmat.primitives.asymmetric import x25519

        private = x25519.X25519PrivateKey.from_private_bytes(self.secret)
        return Recipient(private.public_key().public_bytes_raw())

    def wrap(self, file_key: bytes) -> bytes:
        """Return the stanza that hides the file key."""
        return self.recipient.wrap(file_key)

    def unwrap(self, arguments: list[str], body: bytes) -> bytes | None:
        """Return the file key of a stanza; None where it is not for this secret."""
        from cryptography.hazmat.primitives.asymmetric import x25519

        if len(arguments) != 2 or arguments[0] != "X25519":
            return None
        share = _decode(arguments[1])
        private = x25519.X25519PrivateKey.from_private_bytes(self.secret)
        secret = private.exchange(x25519.X25519PublicKey.from_public_bytes(share))
        return _open_key(_derive(secret, share + self.recipient.public, VERSION + b"/X25519"), body)

    def write(self) -> str:
        """Return the secret as `age-keygen` writes it."""
        return _write_bech32(SECRET, self.secret).upper()


Key = Passphrase | Recipient | Identity


def generate() -> Identity:
    """Return a new secret key."""
    return Identity(os.urandom(32))


def read_key(text: str) -> Recipient | Identity:
    """Read age1… or AGE-SECRET-KEY-1…. Raises ValueError, without the text in it."""
    word = text.strip().lower()
    if word.startswith(SECRET):
        return Identity(_read_bech32(SECRET, word))
    return Recipient(_read_bech32(PUBLIC, word))


def encrypt(chunks: Iterable[bytes], key: Key) -> Iterator[bytes]:
    """Encrypt a stream; the memory needed does not depend on its length."""
    file_key = os.urandom(FILE_KEY_BYTES)
    head = VERSION + b"\n" + key.wrap(file_key) + b"---"
    nonce = os.urandom(NONCE_BYTES)
    yield head + b" " + _encode(_authenticate(file_key, head)).encode() + b"\n" + nonce
    seal = _cipher(file_key, nonce).encrypt
    number, waiting = 0, bytearray()
    for chunk in chunks:
        waiting += chunk
        # The last chunk is marked as such, so one is always held back.
        while len(waiting) > CHUNK_BYTES:
            yield seal(_number(number, last=False), bytes(waiting[:CHUNK_BYTES]), None)
            del waiting[:CHUNK_BYTES]
            number += 1
    yield seal(_number(number, last=True), bytes(waiting), None)


def decrypt(read: Callable[[int], bytes], key: Key) -> Iterator[bytes]:
    """Decrypt what `read(count)` gives; raises NotDecrypted.

    Each chunk is authentic when it is yielded; only the end says that nothing was cut off.
    """
    from cryptography.exceptions import InvalidTag

    source = _Buffered(read)
    file_key = _read_header(source, key)
    unseal = _cipher(file_key, source.take(NONCE_BYTES)).decrypt
    number, chunk = 0, source.take(CHUNK_BYTES + TAG_BYTES)
    while True:
        following = source.take(CHUNK_BYTES + TAG_BYTES)
        try:
            yield unseal(_number(number, last=not following), chunk, None)
        except InvalidTag:
            raise NotDecrypted("it was changed or cut off") from None
        if not following:
            return
        number, chunk = number + 1, following


class _Buffered:
    """A stream that gives exactly as many bytes as asked for, fewer only at its end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read, self.waiting = read, bytearray()

    def take(self, count: int) -> bytes:
        while len(self.waiting) < count and (more := self.read(count - len(self.waiting))):
            self.waiting += more
        taken = bytes(self.waiting[:count])
        del self.waiting[:count]
        return taken

    def take_line(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n") and (more := self.take(1)):
            line += more
            if len(line) > HEADER_BYTES_MAX:
                raise NotDecrypted("it is no age file")
        return bytes(line)


def _read_header(source: _Buffered, key: Key) -> bytes:
    head = source.take_line()
    if head != VERSION + b"\n":
        raise NotDecrypted("it is no age file")
    found: bytes | None = None
    line = source.take_line()
    for _ in range(RECIPIENTS_MAX):
        if line.startswith(b"--- "):
            break
        arguments, body, text = _read_stanza(line, source)
        found = found or key.unwrap(arguments, body)
        head, line = head + text, source.take_line()
    if found is None:
        raise NotDecrypted("the passphrase or key is not the one it was encrypted for")
    if not hmac.compare_digest(_decode(line[4:].decode().strip()), _authenticate(found, head + b"---")):
        raise NotDecrypted("its head was changed")
    return found


def _read_stanza(line: bytes, source: _Buffered) -> tuple[list[str], bytes, bytes]:
    arguments = line.decode(errors="replace").split()
    if arguments[:1] != ["->"]:
        raise NotDecrypted("it is no age file")
    text, body = line, b""
    while part := source.take_line():
        text, body = text + part, body + part.strip()
        if len(part.strip()) < COLUMNS:  # a stanza ends with a line that is not full
            break
    return arguments[1:], _decode(body.decode(errors="replace")), text


def _write_stanza(arguments: list[str], body: bytes) -> bytes:
    assert len(body) < COLUMNS * 3 // 4  # so it is one line
    return f"-> {' '.join(arguments)}\n{_encode(body)}\n".encode()


def _seal_key(key: bytes, file_key: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key).encrypt(bytes(12), file_key, None)


def _open_key(key: bytes, body: bytes) -> bytes | None:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    if len(body) != FILE_KEY_BYTES + TAG_BYTES:
        return None
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), body, None)
    except InvalidTag:
        return None


def _cipher(file_key: bytes, nonce: bytes):  # noqa: ANN202
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(_derive(file_key, nonce, b"payload"))


def _authenticate(file_key: bytes, head: bytes) -> bytes:
    return hmac.digest(_derive(file_key, b"", b"header"), head, "sha256")


def _derive(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, salt or None, purpose).derive(secret)


def _number(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\1" if last else b"\0")


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise NotDecrypted("its head was changed") from None


# bech32 (BIP 173), how age writes keys.
ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
CHECKSUM_SYMBOLS = 6


def _write_bech32(prefix: str, data: bytes) -> str:
    symbols = _regroup(data, 8, 5, pad=True)
    check = _checksum([*_expand(prefix), *symbols, *[0] * CHECKSUM_SYMBOLS]) ^ 1
    symbols += [(check >> 5 * (CHECKSUM_SYMBOLS - 1 - place)) & 31 for place in range(CHECKSUM_SYMBOLS)]
    return prefix + "1" + "".join(ALPHABET[symbol] for symbol in symbols)


def _read_bech32(prefix: str, text: str) -> bytes:
    head, _, tail = text.rpartition("1")
    symbols = [ALPHABET.find(character) for character in tail]
    if head != prefix or -1 in symbols or _checksum([*_expand(prefix), *symbols]) != 1:
        raise ValueError("it is no key of age (age1… or AGE-SECRET-KEY-1…), or has a typing error")
    data = bytes(_regroup(symbols[:-CHECKSUM_SYMBOLS], 5, 8, pad=False))
    if len(data) != 32:
        raise ValueError("it is no X25519 key")
    return data


def _expand(prefix: str) -> list[int]:
    return [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]


def _checksum(symbols: Iterable[int]) -> int:
    value = 1
    for symbol in symbols:
        top, value = value >> 25, (value & 0x1FFFFFF) << 5 ^ symbol
        for place, part in enumerate(GENERATOR):
            value ^= part if top >> place & 1 else 0
    return value


def _regroup(values: Iterable[int], width: int, into: int, *, pad: bool) -> list[int]:
    held, bits, out = 0, 0, list[int]()
    for value in values:
        held, bits = held << width | value, bits + width
        while bits >= into:
            bits -= into
            out.append(held >> bits & ((1 << into) - 1))
    if pad and bits:
        out.append(held << (into - bits) & ((1 << into) - 1))
    return out
