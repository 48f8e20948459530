"""manage.py verify_audit: walk the audit log's hash chain, and compare it with the heads that were published."""

import zipfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from volmig.record import signing
from volmig.record.chain import damage, verify, verify_lines
from volmig.record.heads import elsewhere, read_heads, this_file
from volmig.record.models import ChainHead, Publisher
from volmig.verify_evidence import Checked, Heads

SHOWN = 10


class Command(BaseCommand):
    help = "Verifies the audit log's hash chain; exits with 1 and names the first bad event if it was tampered with."

    def add_arguments(self, parser: CommandParser) -> None:
        text = (
            "file of published heads (default: VOLMIG_AUDIT_HEADS, when it exists); finds an audit log that was cut off"
        )
        parser.add_argument("--heads", type=Path, metavar="FILE", help=text)
        text = "a migration's evidence, or exported JSON lines: are its events unchanged events of this audit log?"
        parser.add_argument("--bundle", type=Path, metavar="FILE", help=text)

    def handle(self, *args: Any, **options: Any) -> None:
        """Exits with 1 when anything was changed."""
        if options["bundle"]:
            self.check_bundle(options["bundle"])
        else:
            self.check_log(options["heads"])

    def check_log(self, given: Path | None) -> None:
        """Verifies the whole audit log against its heads."""
        heads = known_heads(given)
        end, note = expected(given)
        faults = verify(heads, end)
        whole = self.summary(heads)
        for each in [*(heads.notes if heads else ()), *note]:
            self.stdout.write(each)
        if faults:
            more = [f"… and {len(faults) - SHOWN} more."] if len(faults) > SHOWN else []
            damaged = damage(heads, end) if heads else []
            sound = [whole] if all(fault in damaged for fault in faults) else []
            raise CommandError("\n".join([*faults[:SHOWN], *more, *sound]))
        self.stdout.write(whole)

    def check_bundle(self, path: Path) -> None:
        """Verifies an archive and that its events are this audit log's."""
        try:
            lines = events_of(path)
            faults = [*signature_faults(path), *verify_lines(lines)]
        except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
            raise CommandError(f"{path} cannot be read: {error}") from error
        if faults:
            raise CommandError("\n".join(faults[:SHOWN]))
        self.stdout.write(f"All {len(lines)} events are unchanged events of this audit log.")

    def summary(self, heads: Heads | None) -> str:
        """What was verified: events, head, and how many published heads agree."""
        head = ChainHead.objects.filter(pk=1).first()
        if not head:
            return "No events yet."
        compared = len(heads.heads) if heads else 0
        agree = f" {compared} published heads agree." if compared else " No published head was compared."
        return f"The audit log is intact: {head.seq} events, head {head.hash}.{agree}"


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


def expected(given: Path | None) -> tuple[int | None, list[str]]:
    """The last event of which the file of this machine has to have a head, None where that is not known; and a note
    on where heads are published, when another machine does so.

    A file on a machine that never published is a copy, and may end earlier.
    """
    publisher = Publisher.current()
    if publisher is None or (given and given.absolute() != Path(settings.AUDIT_HEADS).absolute()):
        return None, []
    end, last = publisher.published_by(*this_file()), f"the last for event {publisher.seq}"
    if (publisher.place, publisher.path) == this_file():
        return end, []
    return end or 0, [f"Heads are published by {publisher.host} to {publisher.path} ({last})."]


def known_heads(given: Path | None) -> Heads | None:
    """The heads of the file that was named, which has to exist, or of the usual one; None before any was published,
    and on a machine that never did so."""
    path = given or Path(settings.AUDIT_HEADS)
    published = ChainHead.objects.filter(published__gt=0).exists() and not elsewhere()
    if not given and not path.exists() and not published:
        return None
    try:
        return read_heads(path)
    except OSError as error:
        if given:
            raise CommandError(str(error)) from error
        unread = Heads()
        unread.faults.append(f"The heads file cannot be read: {error}.")
        return unread
