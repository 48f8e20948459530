"""manage.py verify_audit: walk the record's hash chain, and hold it against the heads that were published."""

import zipfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from volmig.record.chain import Heads, read_heads, verify, verify_lines
from volmig.record.models import ChainHead

SHOWN = 10


class Command(BaseCommand):
    help = "Walks the record's hash chain; exits with 1 and names the first bad event when it was tampered with."

    def add_arguments(self, parser: CommandParser) -> None:
        told = "file of published heads (default: VOLMIG_AUDIT_HEADS, when it exists); finds a record that was cut off"
        parser.add_argument("--heads", type=Path, metavar="FILE", help=told)
        told = "a migration's evidence, or exported JSON lines: are its events this record's, as they were written?"
        parser.add_argument("--bundle", type=Path, metavar="FILE", help=told)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["bundle"]:
            return self.check_bundle(options["bundle"])
        heads = known_heads(options["heads"])
        if faults := verify(heads):
            more = [f"… and {len(faults) - SHOWN} more."] if len(faults) > SHOWN else []
            raise CommandError("\n".join([*faults[:SHOWN], *more]))
        return self.tell(heads)

    def check_bundle(self, path: Path) -> None:
        try:
            lines = events_of(path)
            faults = verify_lines(lines)
        except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
            raise CommandError(f"{path} cannot be read: {error}") from error
        if faults:
            raise CommandError("\n".join(faults[:SHOWN]))
        self.stdout.write(f"All {len(lines)} events are this record's, as they were written.")

    def tell(self, heads: Heads) -> None:
        head = ChainHead.objects.filter(pk=1).first()
        if not head:
            self.stdout.write("No events yet.")
            return
        held = f" {len(heads)} published heads agree." if heads else " No published head was compared."
        self.stdout.write(f"The record is whole: {head.seq} events, head {head.hash}.{held}")


def events_of(path: Path) -> list[str]:
    """The lines of an archive's events.jsonl, or of a file that is one."""
    if not zipfile.is_zipfile(path):
        return path.read_text().splitlines()
    with zipfile.ZipFile(path) as packed:
        name = next((each for each in packed.namelist() if each.endswith("events.jsonl")), "events.jsonl")
        return packed.read(name).decode().splitlines()


def known_heads(given: Path | None) -> Heads:
    """The heads of the file that was named, which has to exist, or of the usual one, which need not."""
    path = given or Path(settings.AUDIT_HEADS)
    if not given and not path.exists():
        return {}
    try:
        return read_heads(path)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
