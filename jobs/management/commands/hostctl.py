"""manage.py hostctl: write the program that is installed on hypervisors, or keep the file of another release."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from hosts.models import HostctlVersion
from hosts.remote.hostctl import source_hash
from hosts.remote.hostctl.pack import bundle
from jobs import upgrade


class Command(BaseCommand):
    help = "Writes hostctl as one executable file, to be installed root-owned on a hypervisor."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--output", type=Path, help="where it is written (default: hostctl, or hostctl-HASH)")
        text = "the version of a migration under way that began with another release"
        parser.add_argument("--version", metavar="HASH", dest="wanted", help=text)
        text = "keep the file of another release, to ship it to root logins while migrations need it"
        parser.add_argument("--add", type=Path, metavar="FILE", help=text)

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """--version means hostctl's here, not Django's."""
        return super().create_parser(prog_name, subcommand, conflict_handler="resolve", **kwargs)

    def handle(self, *args: Any, **options: Any) -> None:
        """Writes a version's file, or keeps one of another release."""
        if options["add"]:
            self.add(options["add"])
        else:
            self.write(options["wanted"] or source_hash(), options["output"])

    def write(self, wanted: str, output: Path | None) -> None:
        """Writes the file, executable for all; CommandError for an unknown version."""
        content = bundle() if wanted == source_hash() else kept(wanted)
        path = output or Path("hostctl" if wanted == source_hash() else f"hostctl-{wanted}")
        path.write_bytes(content)
        path.chmod(0o755)
        self.stdout.write(f"{path}: hostctl {wanted}")

    def add(self, path: Path) -> None:
        """Keeps the file of another release in the database; CommandError when it is none."""
        try:
            version = upgrade.of_archive(path)
        except ValueError as error:
            raise CommandError(str(error)) from error
        values = {"protocol": version.protocol, "archive": path.read_bytes()}
        HostctlVersion.objects.update_or_create(hash=version.hash, defaults=values)
        self.stdout.write(f"hostctl {version.hash} (protocol {version.protocol}) is kept.")


def kept(wanted: str) -> bytes:
    """The file of a version that migrations began with; raises CommandError when volmig does not have it."""
    found = HostctlVersion.objects.filter(pk=wanted).values_list("archive", flat=True).first()
    if found is None:
        known = ", ".join(HostctlVersion.objects.values_list("pk", flat=True)) or "none"
        raise CommandError(f"volmig has no file of hostctl {wanted}; it has {known}. Give it one with --add FILE.")
    return bytes(found)
