"""manage.py restore: prove a backup, or make a new data directory and database of it, which start read-only."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from jobs.engine import states
from volmig.backup import archive, restore
from volmig.environment import postgresql


class Command(BaseCommand):
    help = "Checks a backup (--check), or restores it (--into) into an empty directory and, for PostgreSQL, database."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--check", action="store_true", help="verify it completely and describe it; changes nothing")
        text = "an empty or new data directory, and for PostgreSQL also the address of an empty database"
        what.add_argument("--into", nargs="+", metavar="TARGET", help=text)
        text = "file with the key that decrypts it: an age identity, or an SSH private key without a passphrase"
        parser.add_argument("--identity", type=Path, metavar="FILE", help=text)

    def handle(self, *args: Any, **options: Any) -> None:
        """CommandError when the backup is damaged or does not fit; nothing was written then."""
        try:
            identities = archive.identities_of(options["identity"]) if options["identity"] else []
            if options["check"]:
                with restore.proved(options["file"], identities) as found:
                    self.tell(found)
            else:
                directory, database = targets(options["into"])
                self.restored(restore.into(options["file"], identities, directory, database), directory, database)
        except (restore.RestoreError, ValueError, OSError) as error:
            raise CommandError(f"{error} Nothing was written.") from error

    def tell(self, found: restore.Proved) -> None:
        """Prints what a backup has, how old it is, and whether this version can restore it."""
        about, hours = found.about, found.age().total_seconds() / 3600
        self.stdout.write(f"Every member has the SHA-256 in the manifest: {len(found.manifest.members)} members.")
        self.stdout.write(f"Made {about['made_at'][:19]} UTC on {about['made_on']}: {age(hours)} old.")
        self.stdout.write(f"Database: {found.vendor}. Audit log: {about['events']} events, head {about['head']}.")
        active = {status: count for status, count in about["jobs"].items() if status not in states.ENDED}
        listed = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in active.items())
        self.stdout.write(f"Migrations that were active then: {listed or 'none'}.")
        if newer := found.newer():
            raise CommandError(
                f"It does not fit this version: a later version of volmig made it ({', '.join(newer[:3])})."
            )
        pending = found.pending()
        fits = f"{len(pending)} database migrations will be applied at the first start" if pending else "as it is"
        self.stdout.write(f"It fits this version: {fits}.")
        target = "DIRECTORY" if found.vendor == "sqlite" else "DIRECTORY postgres://…"
        self.stdout.write(
            f"restore --into {target} would write {size_of(found):,} bytes. volmig then starts read-only."
        )

    def restored(self, found: restore.Proved, directory: Path, database: dict[str, Any] | None) -> None:
        """Prints what to do next."""
        hours = found.age().total_seconds() / 3600
        self.stdout.write(f"Restored into {directory}: as of {found.about['made_at'][:19]} UTC, {age(hours)} ago.")
        start = f"VOLMIG_DATA={directory}" + (" VOLMIG_DB=postgres://…" if database is not None else "")
        self.stdout.write(
            f"Start it with {start} manage.py up. It starts read-only: no hypervisor is changed before you"
        )
        self.stdout.write("have compared each active migration with its hypervisors and adopted it.")
        self.stdout.write(f"Its settings are in {directory / 'restored-settings.json'}.")


def targets(words: list[str]) -> tuple[Path, dict[str, Any] | None]:
    """The data directory, and the settings of a database; raises Refused."""
    addresses = [word for word in words if word.startswith(("postgres://", "postgresql://"))]
    folders = [word for word in words if word not in addresses]
    if len(folders) != 1 or len(addresses) > 1:
        raise restore.RestoreError("Name one directory, and for PostgreSQL one address of a database with it.")
    directory = Path(folders[0]).absolute()
    if directory == settings.DATA:
        said = "is the data directory of this very command. Run it with another VOLMIG_DATA, such as a temporary one."
        raise restore.RestoreError(f"{directory} {said}")
    try:
        return directory, postgresql(addresses[0]) if addresses else None
    except ImproperlyConfigured as error:
        raise restore.RestoreError(f"{addresses[0]} is not a database address: {error}") from error


def age(hours: float) -> str:
    """Minutes, hours or days with one decimal."""
    return (
        f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"
    )


def size_of(found: restore.Proved) -> int:
    """Bytes of all members."""
    return sum(member.size for member in found.manifest.members)
