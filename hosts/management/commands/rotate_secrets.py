"""rotate_secrets: seals every kept secret with a new key; the file of keys lies in the data directory."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from hosts.models import Cloud
from volmig import data_dir, encryption, keys


class Command(BaseCommand):
    help = "Seals the secrets of clouds with a new key. The key before stays for backups; older ones are removed."

    def handle(self, *args: Any, **options: Any) -> None:
        # The next one must not remove a key before this one has sealed with its own what that opens.
        try:
            with keys.alone(data_dir.key_path(encryption.KEYS).parent):
                try:
                    seal_anew()  # by the newest key: no secret needs an older one then, also after an interrupted run
                except encryption.Unopened as error:
                    raise CommandError(f"{error}. No key was changed.") from error
                encryption.new_key()
                count = seal_anew()
        except OSError as error:
            raise CommandError(f"The rotation did not finish: {error}. Run rotate_secrets again.") from error
        if data_dir.is_given(encryption.KEYS):
            keys_file = data_dir.key_path(encryption.KEYS)
            said = f"sealed with the first key in {keys_file}. To change it, add a new one before it, "
            said += "give that file to every machine, and run this again"
        else:
            said = f"sealed with a new key in {encryption.KEYS}. Copy that file to every other machine of this volmig"
        self.stdout.write(f"{count} secret{'' if count == 1 else 's'} {said}.")


@transaction.atomic
def seal_anew() -> int:
    """Seals every secret with the newest key; how many there are. Raises Unopened, with nothing changed."""
    rows = list(Cloud.objects.exclude(secret="").select_for_update())
    for cloud in rows:
        cloud.put(secret=encryption.seal_anew(cloud.secret))
    return len(rows)
