#!/usr/bin/env python3
"""Verifies volmig's evidence without volmig: archives of migrations, published audit heads, exports of the audit log.

    verify_evidence.py ARCHIVE --key KEY                          an archive, by itself
    verify_evidence.py ARCHIVE --key KEY --heads FILE             ... and that its heads are those that were published
    verify_evidence.py --heads FILE --key KEY                     a copy of the published heads
    verify_evidence.py --heads FILE --export FILE --key KEY       ... and an export (JSON lines, no filter) against it
    verify_evidence.py ARCHIVE --heads FILE --export FILE --key KEY     all of it, and that no event was left out

KEY is a public key (base64), a file that holds one, or the keys.json that volmig publishes; it may be given repeatedly.
Take the key and this file from somewhere you trust, never from the archive that you want to check.

Exit status: 0 everything that was checked is in order; 1 at least one fault, each on a line; 2 nothing could be
checked (a file cannot be read, a key is no key). Needs Python 3.8 and nothing else; the `cryptography` package is used
when it is there, because it is faster.

How it fits together (docs/evidence.md has the reasons):

  - The leaf of an event is SHA-256(0x00, previous hash, LF, the event as canonical JSON, LF, its hash).
  - A head is a line of JSON that covers the events `first` to `seq`: `root` is their Merkle tree hash (RFC 6962),
    `prev` the SHA-256 of the intact line before it, `sig` an Ed25519 signature (RFC 8032) of everything but itself.
  - An archive is a ZIP file without compression. Its manifest names every member with size and SHA-256 and is signed.
    The archive has to be byte for byte what this file makes of the members, so nothing in it is unsigned.
"""

import argparse
import base64
import binascii
import collections
import hashlib
import json
import os
import re
import struct
import sys
import zlib
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    FAST = True
except ImportError:
    FAST = False

HEAD, MANIFEST, ROTATION = b"volmig audit head 2\n", b"volmig evidence manifest 1\n", b"volmig evidence key 1\n"
FORMAT = "volmig evidence 1"
SIGNED = ("seq", "at", "actor_id", "actor_name", "role", "session", "address", "action", "job", "object", "data")
COLUMNS = (*SIGNED, "prev_hash", "hash")
LONGEST_LINE = 4096  # bytes; a head has about 500
LARGEST = 1 << 30  # bytes of an archive
Point = Tuple[int, int, int, int]
Event = Dict[str, Any]
Member = Tuple[str, bytes]
Sign = Callable[[bytes], bytes]


# --- Ed25519 ---------------------------------------------------------------------------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)


def add(a: Point, b: Point) -> Point:
    """The sum of two points in extended coordinates (RFC 8032, 5.1.4)."""
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(number: int, point: Point) -> Point:
    """The point added to itself so many times, RFC 8032."""
    result = (0, 1, 1, 0)
    while number:
        if number & 1:
            result = add(result, point)
        point = add(point, point)
        number >>= 1
    return result


def encoded(point: Point) -> bytes:
    """A point in 32 bytes, RFC 8032, 5.1.2."""
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decoded(raw: bytes) -> Optional[Point]:
    """The point of 32 bytes (RFC 8032, 5.1.3); None when they are none."""
    number = int.from_bytes(raw, "little")
    y, sign = number & (1 << 255) - 1, number >> 255
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


BASE: Any = decoded((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def ed25519(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the 64-byte signature of the message was made with the private key of this 32-byte public key."""
    if len(public) != 32 or len(signature) != 64:
        return False
    key, s = decoded(public), int.from_bytes(signature[32:], "little")
    if key is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    minus_key = (P - key[0], key[1], key[2], P - key[3])
    return encoded(add(times(s, BASE), times(k, minus_key))) == signature[:32]


def signed_with(public: bytes, message: bytes, signature: bytes) -> bool:
    """As `ed25519`, by the `cryptography` package when it is there."""
    if not FAST or len(public) != 32:
        return ed25519(public, message, signature)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        return True
    except (InvalidSignature, ValueError):
        return False


# --- keys ------------------------------------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """The one way to write a value as JSON: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def from_base64(text: str, size: int) -> bytes:
    """The bytes of canonical base64; raises ValueError when it is not, or they are not so many."""
    raw = base64.b64decode(text.encode("ascii"), validate=True)
    if len(raw) != size or base64.b64encode(raw).decode() != text:
        raise ValueError(f"not {size} bytes as base64")
    return raw


def key_id(public: bytes) -> str:
    """The first half of the key's SHA-256, in hexadecimal digits."""
    return hashlib.sha256(public).hexdigest()[:16]


class Keys:
    """Public keys by their IDs, each with the times between which it signed (ISO 8601; empty: no limit known)."""

    def __init__(self) -> None:
        self.known: Dict[str, Tuple[bytes, str, str]] = {}

    def add(self, public: bytes, since: str = "", until: str = "") -> None:
        """A key, and from when to when it signed."""
        self.known[key_id(public)] = (public, since or "", until or "")

    def check(self, name: str, message: bytes, signature: bytes, at: str = "") -> str:
        """Why this is not the signature of a trusted key; empty when it is. `at` is the time that was signed."""
        if name not in self.known:
            return f"is signed with key {name}, which is not one of the given keys"
        public, since, until = self.known[name]
        if not signed_with(public, message, signature):
            return f"does not have a valid signature of key {name}"
        if at and ((since and at < since) or (until and at > until)):
            return "is dated {}, when key {} was not valid ({} to {})".format(at, name, since or "…", until or "…")
        return ""


def read_key(given: str, keys: Keys) -> List[str]:
    """Adds the key or keys that an argument names; returns faults of a keys.json. Raises ValueError, OSError."""
    if not os.path.exists(given):
        try:
            keys.add(from_base64(given, 32))
            return []
        except (ValueError, UnicodeError):
            raise ValueError(f"{given} is neither a file nor a public key in base64")
    with open(given, "rb") as file:
        text = file.read(1 << 20).decode()
    if not text.lstrip().startswith("{"):
        keys.add(from_base64((text.split() or [""])[0], 32))
        return []
    return list(read_keys(json.loads(text), keys))


def read_keys(published: Any, keys: Keys) -> Iterator[str]:
    """Adds the keys of a keys.json; yields a sentence for each that is not as its rotation recorded it."""
    before: Dict[str, bytes] = {}
    try:
        for entry in published["keys"]:
            public = from_base64(entry["public"], 32)
            body = {name: entry[name] for name in ("id", "public", "from", "signed_by")}
            if entry["id"] != key_id(public):
                yield "Key {} in keys.json does not have this ID: it is {}.".format(entry["id"], key_id(public))
            elif entry["signed_by"]:
                signer = before.get(entry["signed_by"])
                if not signer or not signed_with(
                    signer, ROTATION + canonical(body), from_base64(entry["signature"], 64)
                ):
                    yield "Key {} in keys.json is not signed by the key before it.".format(entry["id"])
                    continue
            before[entry["id"]] = public
            keys.add(public, entry["from"], entry["until"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"keys.json is not a list of keys ({error})")


# --- the Merkle tree of RFC 6962 -------------------------------------------------------------------------------------


def leaf(event: Event) -> bytes:
    """The leaf of an event, given as the dict of its columns."""
    text = canonical({name: event[name] for name in SIGNED})
    return leaf_of(event["prev_hash"], text, event["hash"])


def leaf_of(prev_hash: str, text: bytes, found: str) -> bytes:
    """The leaf of an event, RFC 9162, 2.1.1."""
    return hashlib.sha256(b"\x00%s\n%s\n%s" % (prev_hash.encode(), text, found.encode())).digest()


def node(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees, RFC 9162, 2.1.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def split(count: int) -> int:
    """The largest power of two below the count."""
    return 1 << (count - 1).bit_length() - 1


def root(leaves: Sequence[bytes]) -> bytes:
    """The root of a tree, RFC 9162, 2.1.1."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    at = split(len(leaves))
    return node(root(leaves[:at]), root(leaves[at:]))


def path(index: int, leaves: Sequence[bytes]) -> List[bytes]:
    """The hashes that lead from a leaf to the root, the lowest first."""
    if len(leaves) < 2:
        return []
    at = split(len(leaves))
    if index < at:
        return [*path(index, leaves[:at]), root(leaves[at:])]
    return [*path(index - at, leaves[at:]), root(leaves[:at])]


def root_by(index: int, count: int, start: bytes, hashes: Sequence[bytes]) -> Optional[bytes]:
    """The root that a leaf and its path give; None when the path has another length than this tree has."""
    if count == 1:
        return None if hashes else start
    if not hashes:
        return None
    at, last, rest = split(count), hashes[-1], hashes[:-1]
    below = root_by(index, at, start, rest) if index < at else root_by(index - at, count - at, start, rest)
    if below is None:
        return None
    return node(below, last) if index < at else node(last, below)


# --- heads -----------------------------------------------------------------------------------------------------------


class Head:
    """One line of a file of heads. `root` is empty in lines of volmig before its heads were signed."""

    def __init__(self, value: Dict[str, Any], line: bytes) -> None:
        self.seq, self.hash, self.at = value["seq"], value["hash"], value["at"]
        self.first, self.root = value.get("first", 0), value.get("root", "")
        self.prev, self.key = value.get("prev", ""), value.get("key", "")
        self.line, self.digest = line, hashlib.sha256(line).hexdigest()


def head_line(value: Dict[str, Any], key: str, sign: Sign) -> bytes:
    """The line of a head, without its line feed: the value, who signed it, the signature, and a sum over all."""
    signed = dict(value, v=2, key=key)
    signed["sig"] = base64.b64encode(sign(HEAD + canonical(signed))).decode()
    return canonical(dict(signed, sum=line_sum(signed)))


def line_sum(signed: Dict[str, Any]) -> str:
    return hashlib.sha256(canonical(signed)).hexdigest()[:16]


def parse_head(line: bytes) -> Head:
    """The head that a line holds; raises ValueError that says what is wrong with it. Signatures are not checked."""
    if not line:
        raise ValueError("is empty")
    if len(line) > LONGEST_LINE:
        raise ValueError(f"is longer than {LONGEST_LINE} bytes")
    try:
        value = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        raise ValueError("is cut off or damaged: it is not JSON")
    types = {"seq": int, "hash": str, "at": str}
    if isinstance(value, dict) and "v" in value:
        types.update({"v": int, "first": int, "root": str, "prev": str, "key": str, "sig": str, "sum": str})
    if not isinstance(value, dict) or {name: type(each) for name, each in value.items()} != types:
        raise ValueError("is not a published head")
    if "v" in value:
        found = value.pop("sum")
        if canonical(dict(value, sum=found)) != line or line_sum(value) != found:
            raise ValueError("is damaged: its checksum is wrong")
        if value["v"] != 2 or not 1 <= value["first"] <= value["seq"]:
            raise ValueError("is not a head that this version knows")
    return Head(value, line)


def check_head(head: Head, keys: Keys) -> str:
    """Why a head's signature does not hold; empty when it does, or when it is of the format that has none."""
    if not head.root:
        return ""
    value = json.loads(head.line.decode())
    signature = value.pop("sig")
    del value["sum"]
    try:
        raw = from_base64(signature, 64)
    except ValueError:
        return "does not have a signature"
    return keys.check(head.key, HEAD + canonical(value), raw, head.at)


class Heads:
    """A file of heads that was read: the intact ones, and sentences on what is wrong with the others.

    `faults` are damage that nothing vouches for. `notes` are damaged lines that a later head covers: it was signed
    after the damage, names the last intact line before it and continues there, so nothing is missing.
    """

    def __init__(self) -> None:
        self.heads: List[Head] = []
        self.faults: List[str] = []
        self.notes: List[str] = []
        self.unsigned = 0

    @classmethod
    def read(cls, lines: Iterable[bytes], keys: Optional[Keys] = None, linked: bool = True) -> "Heads":
        """Reads lines of bytes with their line feeds. Signatures are checked when keys are given; that each line
        follows from the one before it unless they are single lines of a file (`linked`)."""
        found, offset = cls(), 0
        damaged: List[str] = []
        last: Optional[Head] = None
        for number, line in enumerate(lines, 1):
            where = f"Line {number} of the heads file (byte {offset})"
            offset += len(line)
            try:
                head = parse_head(line.rstrip(b"\n"))
                if not line.endswith(b"\n") and not head.root:
                    raise ValueError("is cut off: it does not end with a line feed")
                if keys is not None and (why := check_head(head, keys)):
                    raise ValueError(why)
            except ValueError as error:
                damaged.append(f"{where} {error}.")
                continue
            found.unsigned += not head.root
            if linked:
                found.follow(head, last, damaged, where)
                damaged = []
            last = head
            found.heads.append(head)
        found.faults += damaged
        return found

    def follow(self, head: Head, last: Optional[Head], damaged: List[str], where: str) -> None:
        if not head.root:
            self.faults += damaged
        elif head.prev == (last.digest if last else ""):
            self.notes += [f"{each} A later head was signed after this and covers its events." for each in damaged]
            if last and last.root and head.first != last.seq + 1:
                self.faults.append(
                    f"{where} covers the events from {head.first}, and the head before it those up to {last.seq}: the "
                    "audit log was cut off, or an older database was restored."
                )
        else:
            self.faults += damaged or [
                f"{where} does not follow the line before it: lines between them are missing, or were added."
            ]


def gaps(heads: Iterable[Head]) -> Iterator[str]:
    """Sentences on events between the first and the last head that no signed head covers."""
    reached = 0
    for head in heads:
        if head.root:
            if head.first > reached + 1:
                yield f"No readable head covers the events {reached + 1} to {head.first - 1}."
            reached = max(reached, head.seq)


# --- archives --------------------------------------------------------------------------------------------------------

LOCAL, CENTRAL, END = "<4s5H3L2H", "<4s6H3L5H2L", "<4s4H2LH"
DATE = 33  # 1980-01-01, in the way of ZIP


def pack(members: Sequence[Member]) -> bytes:
    """The archive of members (name, content) in their order: uncompressed, so that its bytes depend on them alone."""
    body: List[bytes] = []
    directory: List[bytes] = []
    offset = 0
    for name, content in members:
        raw, crc, size = name.encode("ascii"), zlib.crc32(content), len(content)
        local = struct.pack(LOCAL, b"PK\3\4", 20, 0, 0, 0, DATE, crc, size, size, len(raw), 0) + raw
        mode = 0o100644 << 16
        directory.append(
            struct.pack(
                CENTRAL, b"PK\1\2", 0x314, 20, 0, 0, 0, DATE, crc, size, size, len(raw), 0, 0, 0, 0, mode, offset
            )
            + raw
        )
        body += [local, content]
        offset += len(local) + size
    central = b"".join(directory)
    end = struct.pack(END, b"PK\5\6", 0, 0, len(members), len(members), len(central), offset, 0)
    return b"".join([*body, central, end])


def unpack(data: bytes) -> Tuple[List[Member], str]:
    """The members (name, content) of an archive as far as they can be read, and what stands against the rest."""
    members: List[Member] = []
    at, size = 0, struct.calcsize(LOCAL)
    while data[at : at + 4] == b"PK\3\4":
        header = data[at : at + size]
        if len(header) < size:
            return members, f"The archive is cut off at byte {at}."
        _, _, flags, method, _, _, _, length, real, name_length, extra = struct.unpack(LOCAL, header)
        start = at + size + name_length + extra
        if flags or method or extra or length != real:
            return members, f"The member at byte {at} is packed in another way than volmig packs."
        try:
            name = data[at + size : at + size + name_length].decode("ascii")
        except UnicodeDecodeError:
            return members, f"The name of the member at byte {at} is not ASCII."
        if start + length > len(data):
            return members, f"The archive is cut off in {shown(name)}."
        members.append((name, data[start : start + length]))
        at = start + length
    return members, "" if data[
        at : at + 4
    ] == b"PK\1\2" else f"After byte {at} there is neither a member nor a directory."


def shown(text: Any) -> str:
    """Text of an archive as it may be printed: it could be anything."""
    return repr(text[:200]) if isinstance(text, str) else repr(text)[:200]


def signed_archive(subject: str, files: Dict[str, bytes], key: str, sign: Sign) -> bytes:
    """The signed archive of files (name to bytes) about a subject such as "migration 7"."""
    text = manifest_text(subject, files)
    signature = f"{key} {base64.b64encode(sign(MANIFEST + text)).decode()}\n"
    return whole(subject, text, signature.encode(), files)


def unsigned_archive(subject: str, files: Dict[str, bytes], why: str) -> bytes:
    """The same archive where no key can be read; `why` stands in the place of its signature."""
    return whole(subject, manifest_text(subject, files), why.encode() + b"\n", files)


def manifest_text(subject: str, files: Dict[str, bytes]) -> bytes:
    listed = [
        {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(files.items())
    ]
    return (
        json.dumps({"format": FORMAT, "subject": subject, "members": listed}, indent=1, sort_keys=True).encode() + b"\n"
    )


def whole(subject: str, manifest: bytes, signature: bytes, files: Dict[str, bytes]) -> bytes:
    members = [("manifest.json", manifest), ("manifest.sig", signature), *sorted(files.items())]
    return pack([("{}/{}".format(subject.replace(" ", "-"), name), content) for name, content in members])


class Manifest(NamedTuple):
    subject: str
    members: List[Tuple[str, int, str]]  # name, size, SHA-256
    is_signed: bool  # by one of the keys that were given


class Checked:
    """What one run checked: sentences on what is in order, and on each fault."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.good: List[str] = []
        self.faults: List[str] = []

    def archive(self, data: bytes) -> Tuple[Dict[str, bytes], int]:
        """Checks an archive; returns its files by name, and the number of its migration (0 when it is none)."""
        members, fault = unpack(data)
        self.faults += [fault] if fault else []
        if not members:
            self.faults.append("This is not an archive of evidence, or nothing of it can be read.")
            return {}, 0
        if pack_differs(members, data) and not fault:
            self.faults.append(
                "The archive does not match its members byte for byte: its headers, its directory or what follows it "
                "were changed."
            )
        folder = members[0][0].partition("/")[0]
        names = [name.partition("/")[2] for name, _ in members]
        contents = {name: content for name, (_, content) in zip(names, members)}
        for name in sorted({name for name, _ in members if not name.startswith(folder + "/")}):
            self.faults.append(f"Member {shown(name)} is not in the folder {shown(folder)}.")
        manifest = self.manifest(contents)
        if manifest is None:
            return {}, 0
        before = len(self.faults)
        self.members(manifest, names, contents)
        subject = manifest.subject
        if folder != subject.replace(" ", "-"):
            self.faults.append(f"The folder is named {shown(folder)}, and the archive is of {shown(subject)}.")
        if len(self.faults) == before and not fault:
            named = "that were signed" if manifest.is_signed else "that the manifest names, for which nothing vouches"
            self.good.append(f"All {len(manifest.members)} members are those {named}, and there are no others.")
        match = re.match(r"migration ([1-9][0-9]{0,17})\Z", subject)
        return contents, int(match.group(1)) if match else 0

    def manifest(self, contents: Dict[str, bytes]) -> Optional[Manifest]:
        text, signature = contents.get("manifest.json"), contents.get("manifest.sig")
        if text is None or signature is None:
            self.faults.append(
                "The archive has no manifest with a signature. Archives of earlier versions of volmig have none: only "
                "manage.py verify_audit --bundle on its server can check those."
            )
            return None
        try:
            name, _, sealed = signature.decode("ascii").rstrip("\n").partition(" ")
            if signature != (f"{name} {sealed}\n").encode():
                raise ValueError
            why = self.keys.check(name, MANIFEST + text, from_base64(sealed, 64))
        except ValueError:
            name, why = "", "does not have a signature: manifest.sig is damaged"
        if why:
            self.faults.append(f"The manifest {why}.")
        try:
            manifest = json.loads(text.decode())
            listed = [(each["name"], each["size"], each["sha256"]) for each in manifest["members"]]
            subject = manifest["subject"]
            right = all((type(name), type(size), type(digest)) == (str, int, str) for name, size, digest in listed)
            if manifest["format"] != FORMAT or not isinstance(subject, str) or not right:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            self.faults.append("The manifest is damaged, or of a version that this program does not know.")
            return None
        if not why:
            self.good.append(f"The archive is of {subject} and signed with key {name}.")
        return Manifest(subject, listed, not why)

    def members(self, manifest: Manifest, names: List[str], contents: Dict[str, bytes]) -> None:
        listed = [name for name, _, _ in manifest.members]
        for name, count in sorted(collections.Counter(names).items()):
            if count > 1:
                self.faults.append(f"Member {shown(name)} is there {count} times.")
        for name in sorted(set(contents) - set(listed) - {"manifest.json", "manifest.sig"}):
            self.faults.append(f"Member {shown(name)} was added: the manifest does not name it.")
        for name, size, digest in manifest.members:
            if name not in contents:
                self.faults.append(f"Member {shown(name)} is missing.")
            elif len(contents[name]) != size or hashlib.sha256(contents[name]).hexdigest() != digest:
                self.faults.append(f"Member {shown(name)} was changed: it is not what was signed.")
        if set(names) == set(listed) | {"manifest.json", "manifest.sig"} and names[2:] != listed:
            self.faults.append("The members are in another order than the signed one.")

    def events(self, contents: Dict[str, bytes], number: int) -> Tuple[Dict[int, Event], List[Head]]:
        """Checks the archive's events against its heads; returns (the events by number, its heads)."""
        before = len(self.faults)
        try:
            chain = json.loads(contents["chain.json"].decode())
            proofs, unreadable = chain["proofs"], chain["heads_error"]
            lines = contents["events.jsonl"].decode().splitlines(True)
            events = list(self.parsed(lines, "events.jsonl"))
            if not isinstance(proofs, dict) or not isinstance(unreadable, str):
                raise ValueError("chain.json is damaged")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self.faults.append(f"The archive's events cannot be read ({error}).")
            return {}, []
        read = Heads.read(contents.get("heads.jsonl", b"").splitlines(True), self.keys, linked=False)
        self.faults += read.faults
        heads = {head.seq: head for head in read.heads if head.root}
        covered = 0
        for event in events:
            if event["job"] != number:
                self.faults.append(f"Event {event['seq']} is of migration {shown(event['job'])}, not of {number}.")
            proof = proofs.get(str(event["seq"]))
            if proof is None:
                continue
            if why := self.not_proved(event, proof, heads):
                self.faults.append(f"Event {event['seq']}: {why}.")
            covered += 1
        if unreadable:
            self.faults.append(f"When volmig made this archive, {shown(unreadable)[1:-1]}.")
        if len(self.faults) == before:
            self.good.append(
                f"{covered} of {len(events)} events are covered by {len(heads)} signed heads"
                + (", published {} to {}.".format(*span(heads)) if heads else ".")
            )
            if covered < len(events):
                self.good.append(
                    f"The other {len(events) - covered} rest on the archive's own signature alone: no head that covers "
                    "them was published or could be read."
                )
        return {event["seq"]: event for event in events}, list(heads.values())

    def parsed(self, lines: Iterable[str], name: str) -> Iterator[Event]:
        """The events of JSON lines; a line that is none, or not written as volmig writes it, is a fault."""
        last = 0
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
                if tuple(event) != COLUMNS or type(event["seq"]) is not int:
                    raise ValueError
                if json.dumps(event, ensure_ascii=False) + "\n" != line:
                    raise ValueError
                leaf(event)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                self.faults.append(f"Line {number} of {name} is not an event as volmig writes it.")
                continue
            if event["seq"] <= last:
                self.faults.append(f"Line {number} of {name}: event {event['seq']} comes after event {last}.")
            last = event["seq"]
            yield event

    def not_proved(self, event: Event, proof: Any, heads: Dict[int, Head]) -> str:
        try:
            head, hashes = heads.get(proof["head"]), [bytes.fromhex(each) for each in proof["path"]]
        except (KeyError, TypeError, ValueError):
            return "its proof cannot be read"
        if head is None:
            return "the head that its proof names is not in the archive, or not signed"
        if not head.first <= event["seq"] <= head.seq:
            return "the head that its proof names does not cover it"
        if len(hashes) > 64:
            return "its proof cannot be read"
        reached = root_by(event["seq"] - head.first, head.seq - head.first + 1, leaf(event), hashes)
        return "" if reached and reached.hex() == head.root else "it is not the event that the published head covers"

    def published(self, file: str, lines: Iterable[bytes]) -> Heads:
        """Checks a file of heads; returns what was read of it."""
        read = Heads.read(lines, self.keys)
        self.faults += [*read.faults, *gaps(read.heads)]
        self.good += read.notes
        signed = [head for head in read.heads if head.root]
        if signed:
            self.good.append(
                f"{file}: {len(signed)} signed heads, published {signed[0].at} to {signed[-1].at}, the last of event "
                f"{signed[-1].seq}."
            )
        if read.unsigned:
            self.good.append(
                f"{file}: {read.unsigned} heads of an earlier version have no signature. Only volmig's server can "
                "check those."
            )
        if not read.heads:
            self.faults.append(f"{file} contains no readable head.")
        elif not signed:
            self.faults.append(f"{file} contains no signed head: anyone can write such a file.")
        return read

    def among(self, heads: Sequence[Head], published: Heads) -> None:
        """Whether the heads of an archive are lines of the file that was published."""
        lines = {head.line for head in published.heads}
        for head in heads:
            if head.line not in lines:
                self.faults.append(f"The archive's head of event {head.seq} is not in the file of published heads.")
        if heads and all(head.line in lines for head in heads):
            self.good.append(f"All {len(heads)} heads of the archive are in the file of published heads.")

    def export(self, lines: Iterable[str], published: Heads, name: str) -> Tuple[Dict[int, Any], int]:
        """Checks an export against published heads; returns the migrations of its events by their numbers, and the
        event up to which it is proved to have every event."""
        leaves: Dict[int, bytes] = {}
        jobs: Dict[int, Any] = {}
        for event in self.parsed(lines, name):
            leaves[event["seq"]], jobs[event["seq"]] = leaf(event), event["job"]
        covered, absent, whole_to, last = 0, 0, 0, max(leaves, default=0)
        for head in published.heads:
            if not head.root:
                continue
            wanted = range(head.first, head.seq + 1)
            here = [leaves[seq] for seq in wanted if seq in leaves]
            if not here:
                absent += len(wanted)
                if head.seq < last:
                    self.faults.append(
                        f"{name} lacks the events {head.first} to {head.seq}, and has later ones: it is not the whole "
                        "audit log."
                    )
            elif len(here) < len(wanted):
                missing = next(seq for seq in wanted if seq not in leaves)
                self.faults.append(
                    f"{name} lacks event {missing}, which the head of event {head.seq} covers (an export with filters "
                    "cannot be checked)."
                )
            elif root(here).hex() != head.root:
                self.faults.append(
                    f"Of the events {head.first} to {head.seq} of {name} one or more are not those that the published "
                    "head covers."
                )
            else:
                covered += len(here)
                whole_to = head.seq if head.first == whole_to + 1 else whole_to
        if not covered:
            self.faults.append(f"No signed head covers events of {name}: nothing vouches for it.")
        self.good.append(f"{name}: {covered} of {len(leaves)} events are exactly those that the heads cover.")
        if absent:
            self.good.append(f"{name} lacks {absent} events that the heads cover: they were not checked.")
        return jobs, whole_to

    def complete(self, number: int, events: Dict[int, Event], jobs: Dict[int, Any], whole_to: int) -> None:
        """Whether the archive holds all of the migration's events that the export has, up to its last.

        That says something only of events of which the export has every one: those up to `whole_to`.
        """
        last = max(events, default=0)
        wanted = {seq for seq, job in jobs.items() if job == number and seq <= last}
        left_out, unknown = sorted(wanted - set(events)), sorted(set(events) - set(jobs))
        if left_out:
            self.faults.append(f"The archive leaves out event {left_out[0]} of its migration ({len(left_out)} in all).")
        if unknown:
            self.faults.append(f"Event {unknown[0]} of the archive is not in the export ({len(unknown)} in all).")
        later = sorted(seq for seq, job in jobs.items() if job == number and seq > last)
        if later:
            self.good.append(
                f"The export has {len(later)} later events of migration {number}, the first is event {later[0]}: the "
                "archive is older than these, or leaves them out. Compare with an archive made now."
            )
        if whole_to and not left_out and not unknown:
            up_to = min(last, whole_to)
            self.good.append(f"The archive leaves out no event of migration {number} up to event {up_to}.")
        if whole_to < last:
            self.good.append(
                f"Not checked: whether events of migration {number} after event {whole_to} were left out. The export "
                "is not proved to have all of them."
            )


def pack_differs(members: Sequence[Member], data: bytes) -> bool:
    try:
        return pack(members) != data
    except (UnicodeEncodeError, struct.error):
        return True


def span(heads: Dict[int, Head]) -> Tuple[str, str]:
    times = sorted(head.at for head in heads.values())
    return times[0], times[-1]


def lines_of(name: Union[str, "os.PathLike[str]"]) -> Iterator[bytes]:
    """The lines of a file, as bytes; one without line feeds for a long way is cut into pieces that are no lines."""
    with open(name, "rb") as file:
        while line := file.readline(1 << 24):
            yield line


def verify(archive: str, keys: Keys, heads: str = "", export: str = "") -> Checked:
    """Everything that the command does; returns a Checked. Raises OSError, ValueError when nothing can be checked."""
    checked = Checked(keys)
    contents: Dict[str, bytes] = {}
    events: Dict[int, Event] = {}
    used: List[Head] = []
    number = 0
    if archive:
        if os.path.getsize(archive) > LARGEST:
            raise ValueError(f"{archive} is larger than 1 GiB")
        with open(archive, "rb") as file:
            contents, number = checked.archive(file.read())
        if contents:
            events, used = checked.events(contents, number)
    published = checked.published(heads, lines_of(heads)) if heads else None
    if published and used:
        checked.among(used, published)
    if export and published:
        jobs, whole_to = checked.export((line.decode() for line in lines_of(export)), published, export)
        if events:
            checked.complete(number, events, jobs, whole_to)
    elif archive and events:
        checked.good.append(
            "Not checked: whether events of this migration were left out. An export of the whole audit log shows that."
        )
    return checked


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Exit status: 0 no fault, 1 at least one, 2 nothing could be checked."""
    parser = argparse.ArgumentParser(
        description="Verifies volmig's evidence.", epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", nargs="?", help="the archive of a migration's evidence")
    parser.add_argument("--key", action="append", required=True, metavar="KEY", help="public key, or keys.json")
    parser.add_argument("--heads", default="", metavar="FILE", help="a copy of the published heads")
    parser.add_argument("--export", default="", metavar="FILE", help="the audit log, exported as JSON lines")
    options = parser.parse_args(arguments)
    if not options.archive and not options.heads:
        parser.error("name an archive, or --heads")
    if options.export and not options.heads:
        parser.error("--export needs --heads: an export is checked against the heads that were published")
    keys = Keys()
    try:
        faults = [fault for given in options.key for fault in read_key(given, keys)]
        checked = verify(options.archive, keys, options.heads, options.export)
    except (OSError, ValueError, binascii.Error) as error:
        print(f"Cannot check this: {error}", file=sys.stderr)
        return 2
    for sentence in checked.good:
        print(sentence)
    for fault in [*faults, *checked.faults]:
        print(f"FAULT: {fault}")
    found = len(faults) + len(checked.faults)
    print(f"{found} fault{'' if found == 1 else 's'} found." if found else "No fault found.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
