"""manage.py verify_audit: walk the audit log's hash chain, and compare it with the heads that were published."""

import zipfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from volmig.record import signing
from volmig.record.chain import damage, verify, verify_lines
from volmig.record.heads import read_heads
from volmig.record.models import ChainHead
from volmig.verify_evidence import Checked, Heads

SHOWN = 10


class Command(BaseCommand):
    help = "Walks the audit log's hash chain; exits with 1 and names the first bad event when it was tampered with."

    def add_arguments(self, parser: CommandParser) -> None:
        text = (
            "file of published heads (default: VOLMIG_AUDIT_HEADS, when it exists); finds an audit log that was cut off"
        )
        parser.add_argument("--heads", type=Path, metavar="FILE", help=text)
        text = "a migration's evidence, or exported JSON lines: are its events this audit log's, as they were written?"
        parser.add_argument("--bundle", type=Path, metavar="FILE", help=text)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["bundle"]:
            self.check_bundle(options["bundle"])
        else:
            self.check_log(options["heads"])

    def check_log(self, given: Path | None) -> None:
        heads = known_heads(given)
        faults = verify(heads)
        whole = self.summary(heads)
        for note in heads.notes if heads else ():
            self.stdout.write(note)
        if faults:
            more = [f"… and {len(faults) - SHOWN} more."] if len(faults) > SHOWN else []
            damaged = damage(heads) if heads else []
            sound = [whole] if all(fault in damaged for fault in faults) else []
            raise CommandError("\n".join([*faults[:SHOWN], *more, *sound]))
        self.stdout.write(whole)

    def check_bundle(self, path: Path) -> None:
        try:
            lines = events_of(path)
            faults = [*signature_faults(path), *verify_lines(lines)]
        except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
            raise CommandError(f"{path} cannot be read: {error}") from error
        if faults:
            raise CommandError("\n".join(faults[:SHOWN]))
        self.stdout.write(f"All {len(lines)} events are this audit log's, as they were written.")

    def summary(self, heads: Heads | None) -> str:
        head = ChainHead.objects.filter(pk=1).first()
        if not head:
            return "No events yet."
        compared = len(heads.heads) if heads else 0
        agree = f" {compared} published heads agree." if compared else " No published head was compared."
        return f"The audit log is whole: {head.seq} events, head {head.hash}.{agree}"


def signature_faults(path: Path) -> list[str]:
    """What is wrong with an archive as a whole; archives of earlier versions are not signed, an export neither."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as packed:
        if not any(name.endswith("/manifest.json") for name in packed.namelist()):
            return []
    checked = Checked(signing.known_keys())
    checked.archive(path.read_bytes())
    return checked.faults


def events_of(path: Path) -> list[str]:
    """The lines of an archive's events.jsonl, or of a file that is one."""
    if not zipfile.is_zipfile(path):
        return path.read_text().splitlines()
    with zipfile.ZipFile(path) as packed:
        name = next((each for each in packed.namelist() if each.endswith("events.jsonl")), "events.jsonl")
        return packed.read(name).decode().splitlines()


def known_heads(given: Path | None) -> Heads | None:
    """The heads of the file that was named, which has to exist, or of the usual one; None before any was published."""
    path = given or Path(settings.AUDIT_HEADS)
    if not given and not path.exists() and not ChainHead.objects.filter(published__gt=0).exists():
        return None
    try:
        return read_heads(path)
    except OSError as error:
        if given:
            raise CommandError(str(error)) from error
        unread = Heads()
        unread.faults.append(f"The heads file cannot be read: {error}.")
        return unread
