"""manage.py backup: one archive of everything that volmig itself is, made while it runs."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from django.utils import timezone

from hosts.remote import hostctl
from volmig.backup import archive, databases
from volmig.backup.make import UnsteadyError, make


class Command(BaseCommand):
    help = "Writes one archive: database, keys, audit heads and settings. volmig can keep running."

    def add_arguments(self, parser: CommandParser) -> None:
        text = "new file (default: volmig-backup-<time>.tar.gz[.age] in the current directory)"
        parser.add_argument("--output", type=Path, metavar="FILE", help=text)
        text = (
            "encrypt it for this age1… or ssh-ed25519 public key; may be repeated (default: VOLMIG_BACKUP_RECIPIENTS)"
        )
        parser.add_argument("--recipient", action="append", metavar="KEY", help=text)

    def handle(self, *args: Any, **options: Any) -> None:
        """CommandError when the file exists, or the backup could not be made; then nothing is left of it."""
        try:
            recipients = archive.recipients_of(options["recipient"] or settings.BACKUP_RECIPIENTS)
            ending = ".tar.gz.age" if recipients else ".tar.gz"
            target = options["output"] or Path(f"volmig-backup-{timezone.now():%Y%m%d-%H%M%S}{ending}")
            folder = target.absolute().parent
            if not folder.is_dir():
                raise ValueError(f"There is no directory {folder}. Create it first, with mode 0700.")
            made = make(target.absolute(), recipients, {"hostctl": hostctl.source_hash()})
        except FileExistsError as error:
            raise CommandError(f"{target} exists already. Nothing was written.") from error
        except (ValueError, OSError, DatabaseError, databases.DumpError, UnsteadyError) as error:
            raise CommandError(f"No backup was made. {error}") from error
        size = target.stat().st_size
        self.stdout.write(f"{target}: {size:,} bytes, {made.about['events']} events, SHA-256 {archive.digest(target)}")
        for name, why in made.about["left_out"].items():
            self.stdout.write(f"Not in it: {name} ({why})")
        if not recipients:
            said = "It is NOT encrypted and has the keys. Set VOLMIG_BACKUP_RECIPIENTS, or protect it like the keys."
            self.stderr.write(self.style.WARNING(said))
