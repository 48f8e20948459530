"""manage.py verify_audit: walk the record's hash chain, and hold it against the heads that were published."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from volmig.record.chain import Heads, read_heads, verify
from volmig.record.models import ChainHead

SHOWN = 10


class Command(BaseCommand):
    help = "Walks the record's hash chain; exits with 1 and names the first bad event when it was tampered with."

    def add_arguments(self, parser: CommandParser) -> None:
        told = "file of published heads (default: VOLMIG_AUDIT_HEADS, when it exists); finds a record that was cut off"
        parser.add_argument("--heads", type=Path, metavar="FILE", help=told)

    def handle(self, *args: Any, **options: Any) -> None:
        heads = known_heads(options["heads"])
        if faults := verify(heads):
            more = [f"… and {len(faults) - SHOWN} more."] if len(faults) > SHOWN else []
            raise CommandError("\n".join([*faults[:SHOWN], *more]))
        head = ChainHead.objects.filter(pk=1).first()
        if not head:
            self.stdout.write("No events yet.")
            return
        held = f" {len(heads)} published heads agree." if heads else " No published head was compared."
        self.stdout.write(f"The record is whole: {head.seq} events, head {head.hash}.{held}")


def known_heads(given: Path | None) -> Heads:
    """The heads of the file that was named, which has to exist, or of the usual one, which need not."""
    path = given or Path(settings.AUDIT_HEADS)
    if not given and not path.exists():
        return {}
    try:
        return read_heads(path)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
