"""Notifies systemd that this process is ready, alive or stopping (Type=notify, WatchdogSec=)."""

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Sends lines such as READY=1 (sd_notify(3): one datagram to NOTIFY_SOCKET); nothing where that is not set."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    # If systemd does not read, it acts by its own deadlines: no reason to stop what works.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto("\n".join(lines).encode(), address)
