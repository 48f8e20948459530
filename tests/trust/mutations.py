"""Mutates an archive of evidence many times, and has the verifier look at each: run as a process of its own.

    python -I mutations.py VERIFIER ARCHIVE OTHER KEYS COUNT SEED fast|pure

Prints JSON: how many mutations of each kind were made, and which of them were not detected. Imports neither volmig nor
Django. OTHER is an honest archive of another migration, by the same key.
"""

import base64
import hashlib
import importlib.util
import io
import json
import random
import struct
import sys
import zipfile
import zlib
from pathlib import Path


def verifier(path, pure):
    if pure:
        sys.modules["cryptography"] = None
    spec = importlib.util.spec_from_file_location("verify_evidence", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FAST is not pure
    return module


class Mutations:
    """Each method is a kind of mutation and returns the bytes of a changed archive."""

    def __init__(self, module, good, other, rng):
        self.module, self.good, self.other, self.rng = module, good, other, rng
        self.members, _ = module.unpack(good)
        self.others, _ = module.unpack(other)
        self.directory = good.index(b"PK\1\2")

    def somewhere(self, room=1):
        return self.rng.randrange(len(self.good) - room + 1)

    def packed(self, members):
        return self.module.pack(members)

    def one(self, name=""):
        if name:
            return next(at for at, (each, _) in enumerate(self.members) if each.endswith(name))
        return self.rng.randrange(len(self.members))

    def with_content(self, at, content, members=None):
        changed = list(members or self.members)
        changed[at] = (changed[at][0], content)
        return changed

    # bytes

    def bit_flipped(self):
        at = self.somewhere()
        return self.good[:at] + bytes([self.good[at] ^ (1 << self.rng.randrange(8))]) + self.good[at + 1 :]

    def byte_replaced(self):
        at = self.somewhere()
        return self.good[:at] + bytes([(self.good[at] + self.rng.randrange(1, 256)) % 256]) + self.good[at + 1 :]

    def byte_of_the_directory_replaced(self):
        at = self.rng.randrange(self.directory, len(self.good))
        return self.good[:at] + bytes([(self.good[at] + self.rng.randrange(1, 256)) % 256]) + self.good[at + 1 :]

    def truncated(self):
        return self.good[: self.somewhere()]

    def range_removed(self):
        at = self.somewhere()
        return self.good[:at] + self.good[at + self.rng.randint(1, 500) :]

    def range_inserted(self):
        at = self.somewhere()
        return self.good[:at] + self.rng.randbytes(self.rng.randint(1, 500)) + self.good[at:]

    def range_zeroed(self):
        at = self.somewhere(64)
        return self.good[:at] + bytes(64) + self.good[at + 64 :]

    def blocks_swapped(self):
        one, other = sorted(self.rng.sample(range(0, len(self.good) - 64, 64), 2))
        data = bytearray(self.good)
        data[one : one + 64], data[other : other + 64] = data[other : other + 64], data[one : one + 64]
        return bytes(data)

    def trailing_data(self):
        return self.good + self.rng.randbytes(self.rng.randint(1, 100))

    def leading_data(self):
        return self.rng.randbytes(self.rng.randint(1, 100)) + self.good

    def comment_added(self):
        comment = self.rng.randbytes(self.rng.randint(1, 100))
        return self.good[:-2] + struct.pack("<H", len(comment)) + comment

    def two_archives(self):
        return self.good + self.good if self.rng.random() < 0.5 else self.good + self.other

    # members, with sums that are right again

    def content_edited(self):
        at = self.one()
        content = bytearray(self.members[at][1])
        content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        return self.packed(self.with_content(at, bytes(content)))

    def content_cut(self):
        at = self.one()
        content = self.members[at][1]
        return self.packed(self.with_content(at, content[: self.rng.randrange(len(content))]))

    def content_extended(self):
        at = self.one()
        return self.packed(self.with_content(at, self.members[at][1] + self.rng.choice([b"\n", b" ", b"\0", b"{}\n"])))

    def contents_swapped(self):
        one, other = self.rng.sample(range(len(self.members)), 2)
        changed = self.with_content(one, self.members[other][1])
        return self.packed(self.with_content(other, self.members[one][1], changed))

    def members_reordered(self):
        changed = list(self.members)
        while changed == self.members:
            self.rng.shuffle(changed)
        return self.packed(changed)

    def member_removed(self):
        at = self.one()
        return self.packed(self.members[:at] + self.members[at + 1 :])

    def member_duplicated(self):
        at, to = self.one(), self.rng.randrange(len(self.members) + 1)
        return self.packed([*self.members[:to], self.members[at], *self.members[to:]])

    def member_shadowed(self):
        """A second one of the same name, with other contents: which of the two a program reads depends on it."""
        at, to = self.one(), self.rng.randrange(len(self.members) + 1)
        second = (self.members[at][0], self.members[at][1] + b"\n")
        return self.packed([*self.members[:to], second, *self.members[to:]])

    def member_added(self):
        to, folder = self.rng.randrange(len(self.members) + 1), self.members[0][0].partition("/")[0]
        name = self.rng.choice(["x", f"{folder}/x", f"{folder}/README", "../x", f"{folder}/", f"{folder}/job.json "])
        return self.packed([*self.members[:to], (name, self.rng.randbytes(9)), *self.members[to:]])

    def member_renamed(self):
        at = self.one()
        name = self.members[at][0]
        name = self.rng.choice([name + "x", name.upper(), name.replace("/", "//"), "/" + name, name[:-1]])
        return self.packed([*self.members[:at], (name, self.members[at][1]), *self.members[at + 1 :]])

    def folder_renamed(self):
        number = str(self.rng.randrange(2, 10**6))
        return self.packed([(f"migration-{number}/{name.partition('/')[2]}", each) for name, each in self.members])

    def member_of_another(self):
        """Replayed from an honest archive of another migration."""
        at = self.one()
        theirs = {name.partition("/")[2]: content for name, content in self.others}
        content = theirs[self.members[at][0].partition("/")[2]]
        return self.packed(self.with_content(at, content))

    def file_hidden_between(self):
        """Bytes between members, which most programs that open archives pass over."""
        cut = self.good.index(b"PK\3\4", 4)
        return self.good[:cut] + self.rng.randbytes(self.rng.randint(1, 50)) + self.good[cut:]

    # with another program for archives

    def packed_anew(self):
        made = io.BytesIO()
        method = self.rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
        with zipfile.ZipFile(made, "w", method, compresslevel=self.rng.randint(1, 9)) as packed:
            for name, content in self.members:
                member = zipfile.ZipInfo(name, (self.rng.randint(1980, 2100), 1, 1, 0, 0, 0))
                member.external_attr = self.rng.choice([0o644, 0o755, 0o120777]) << 16
                packed.writestr(member, content, method)
        return made.getvalue()

    def appended_to(self):
        made = io.BytesIO(self.good)
        with zipfile.ZipFile(made, "a") as packed:
            packed.writestr(self.rng.choice(["x", self.members[0][0].partition("/")[0] + "/x"]), self.rng.randbytes(5))
        return made.getvalue()

    # by whoever has read the verifier

    def forged(self, change):
        """Contents changed and every sum and the manifest made right again; only the private key is missing."""
        files = {name.partition("/")[2]: content for name, content in self.members[2:]}
        change(files)
        subject = self.members[0][0].partition("/")[0].replace("-", " ")
        text = self.module.manifest_text(subject, files)
        return subject, text, files

    def lie(self, files):
        name = self.rng.choice([each for each in files if each.endswith((".json", ".jsonl"))])
        files[name] = files[name].replace(b"a", b"b") + b"\n"

    def manifest_made_anew(self):
        subject, text, files = self.forged(self.lie)
        return self.module.whole(subject, text, self.members[1][1], files)

    def signed_by_another_key(self):
        """With the ID of the true key, or of the key that signed."""
        subject, text, files = self.forged(self.lie)
        public, signature = foreign_signature(self.module, text, self.rng)
        name = self.rng.choice([self.module.key_id(public), self.members[1][1].split()[0].decode()])
        line = f"{name} {base64.b64encode(signature).decode()}\n"
        return self.module.whole(subject, text, line.encode(), files)

    def signature_made_malleable(self):
        """S + L is the same number for a verifier that does not check its range."""
        name, text = self.members[1][1].decode().split()
        raw = base64.b64decode(text)
        s = int.from_bytes(raw[32:], "little") + self.module.L * self.rng.randint(1, 15)
        again = raw[:32] + (s % (1 << 256)).to_bytes(32, "little")
        return self.packed(self.with_content(1, f"{name} {base64.b64encode(again).decode()}\n".encode()))

    def signature_written_otherwise(self):
        line = self.members[1][1].decode()
        variants = [line.replace(" ", "  "), line.upper(), line.rstrip("\n"), line + "\n", line.replace("=", "")]
        variants += [line.replace("\n", "\r\n"), " " + line, line.replace(" ", "\t")]
        return self.packed(self.with_content(1, self.rng.choice(variants).encode()))

    def signature_left_out(self):
        subject, text, files = self.forged(self.lie)
        return self.module.whole(subject, text, self.rng.choice([b"", b"\n", b"none\n", text[:64]]), files)

    def events_of_an_honest_archive_replayed(self):
        """Another migration's events and heads under this one's name."""
        files = {name.partition("/")[2]: content for name, content in self.others[2:]}
        folder = self.members[0][0].partition("/")[0]
        members = [*self.others[:2], *sorted(files.items())]
        return self.packed([(f"{folder}/{name.rpartition('/')[2]}", content) for name, content in members])


SECRET = b"an attacker's own seed".ljust(32)


def foreign_signature(module, text, rng):
    """An honest Ed25519 signature of the text with a key of one's own (RFC 8032, 5.1.6)."""
    digest = hashlib.sha512(SECRET).digest()
    scalar = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | (1 << 254)
    public = module.encoded(module.times(scalar, module.BASE))
    message = module.MANIFEST + text
    r = int.from_bytes(hashlib.sha512(digest[32:] + message).digest(), "little") % module.L
    point = module.encoded(module.times(r, module.BASE))
    k = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little") % module.L
    signature = point + ((r + k * scalar) % module.L).to_bytes(32, "little")
    assert module.ed25519(public, message, signature)
    return public, signature


KINDS = [name for name, each in vars(Mutations).items() if callable(each)]
KINDS = [
    each
    for each in KINDS
    if each[0] != "_" and each not in ("somewhere", "packed", "one", "with_content", "forged", "lie")
]


def main(program, archive, other, keys, count, seed, speed):
    module = verifier(program, speed == "pure")
    good, rng = Path(archive).read_bytes(), random.Random(int(seed))
    known = module.Keys()
    assert not module.read_key(keys, known)
    assert not module.verify(archive, known).faults, "the archive itself has to be in order"
    mutations = Mutations(module, good, Path(other).read_bytes(), rng)
    made, undetected = dict.fromkeys(KINDS, 0), []
    scratch = Path(archive).with_name(f"mutated-{speed}.zip")
    while sum(made.values()) < int(count):
        kind = KINDS[sum(made.values()) % len(KINDS)]
        changed = getattr(mutations, kind)()
        if changed == good:
            continue
        made[kind] += 1
        scratch.write_bytes(changed)
        if not module.verify(str(scratch), known).faults:
            kept = scratch.with_name(f"undetected-{len(undetected)}.zip")
            kept.write_bytes(changed)
            undetected.append([kind, str(kept), zlib.crc32(changed)])
    strangers = sorted(name for name in sys.modules if name.split(".")[0] in ("django", "volmig", "jobs", "hosts"))
    print(json.dumps({"made": made, "undetected": undetected, "strangers": strangers}))


if __name__ == "__main__":
    main(*sys.argv[1:])
