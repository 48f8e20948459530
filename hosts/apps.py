"""App configuration of hosts; counts the SSH connections that are tried."""

from django.apps import AppConfig

from hosts.remote import meter


class HostsConfig(AppConfig):
    name = "hosts"

    def ready(self) -> None:
        if count not in meter.observers:
            meter.observers.append(count)


def count(outcome: str, seconds: float) -> None:
    from volmig.health import tallies  # imports models, which are not loaded yet above

    tallies.count("volmig_ssh_connects", outcome=outcome)
    if outcome == "ok":
        tallies.observe("volmig_ssh_connect_seconds", seconds)
