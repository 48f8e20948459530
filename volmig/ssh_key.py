"""The private key with which volmig logs in on hypervisors."""

from pathlib import Path

from django.conf import settings

from volmig import data_dir


def ssh_key_file() -> str:
    """Returns the private key's path, made on first use; empty when only the SSH agent is to be asked.

    Raises NotForThisProcess in a web process.
    """
    if settings.SSH_KEY == "agent":
        return ""
    if settings.SSH_KEY:
        data_dir.key_path("ssh_key")  # refuses where it is not for this process
        data_dir.publish_ssh_key(Path(settings.SSH_KEY))
        return str(settings.SSH_KEY)
    return str(data_dir.ssh_key())
