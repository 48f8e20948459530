"""manage.py evidence_key: the public keys with which anyone can check published heads and archives."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from volmig.record import signing


class Command(BaseCommand):
    help = "Prints the public keys that sign evidence, as keys.json: the last is in use, older ones were rotated."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            self.stdout.write(json.dumps(signing.published(), indent=1))
        except (OSError, ValueError) as error:
            raise CommandError(f"The keys cannot be read: {error}.") from error
