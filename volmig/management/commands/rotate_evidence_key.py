"""manage.py rotate_evidence_key: replace the key that signs evidence; the old key signs the new one."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from volmig.record import signing


class Command(BaseCommand):
    help = "Makes a new key for evidence, signed by the old one, whose private half is then gone. Both stay published."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            new = signing.rotate()
        except (OSError, ValueError) as error:
            raise CommandError(f"The key was not changed: {error}.") from error
        self.stdout.write(
            f"Key {new['id']} signs from now on; key {new['signed_by']} signed it. Publish keys.json again to whoever "
            "checks evidence (manage.py evidence_key)."
        )
