"""manage.py upgrade-check: what an upgrade of volmig would mean for the migrations that are under way."""

import re
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from jobs import upgrade


class Command(BaseCommand):
    help = (
        "Lists the migrations under way, with what would keep each from going on after an upgrade to this source tree, "
        "and the hypervisors that need the new file. Exits with 1 when a migration would wait."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        text = "the file of hostctl of another release, or its hash (default: this source tree's)"
        parser.add_argument("--to", metavar="FILE|HASH", help=text)

    def handle(self, *args: Any, **options: Any) -> None:
        """Exits with 1 when a migration would wait after the upgrade."""
        if refusal := upgrade.downgrade():
            raise CommandError(refusal)
        target = self.target(options["to"])
        found = upgrade.affected(target)
        self.stdout.write(f"The upgrade brings hostctl {target.hash}, which speaks protocol {target.protocol}.")
        for line in upgrade.sentences(found) or ["No migration is under way."]:
            self.stdout.write(line)
        if missing := upgrade.to_install(target):
            file = f"Install hostctl {target.hash} before the upgrade on: {', '.join(missing)}."
            self.stdout.write(f"{file} The versions that are there stay beside it.")
        if waiting := [str(each.number) for each in found if each.lacking]:
            raise CommandError(f"Would wait: migration {', '.join(waiting)}. Install what is missing first.")

    def target(self, to: str | None) -> upgrade.Version:
        """The version to upgrade to; CommandError when the file is not hostctl's."""
        if to is None or to == upgrade.own().hash:
            return upgrade.own()
        if re.fullmatch(r"[0-9a-f]{16}", to):
            return upgrade.Version(to, upgrade.own().protocol)
        try:
            return upgrade.of_archive(Path(to))
        except ValueError as error:
            raise CommandError(str(error)) from error
