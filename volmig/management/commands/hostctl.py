"""manage.py hostctl: write the program that is installed on hypervisors."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from hosts.remote.hostctl import source_hash
from hosts.remote.hostctl.pack import bundle


class Command(BaseCommand):
    help = "Writes hostctl as one executable file, to be installed root-owned on a hypervisor."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--output", type=Path, default=Path("hostctl"))

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["output"]
        path.write_bytes(bundle())
        path.chmod(0o755)
        self.stdout.write(f"{path}: hostctl {source_hash()}")
