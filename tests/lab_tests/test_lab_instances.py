"""Instances of the lab are real: qemu boots them from the share, they mount their disk and obey the power button."""

import hashlib
import os

import pytest

# What these show, every migration of the lab shows too: when one fails, they say whether it was the lab.
pytestmark = [pytest.mark.lab, pytest.mark.torture]
UUID = "c8d1a0b2-1111-4222-8333-944445555666"
NAME = "instance-0000000a"


def off(lab):
    lab.dst.wait(f"virsh domstate {NAME} | grep -q 'shut off'", seconds=40)


def test_the_console_shows_the_checksum_of_the_data_disk(clean_lab):
    data = os.urandom(100_000)
    instance = clean_lab.instance(UUID, NAME, disk_bytes=64 << 20, data=data)
    clean_lab.start(instance)
    assert hashlib.sha256(data).hexdigest() == instance.sha256
    clean_lab.wait_console(instance, f"VOLMIG-DATA sha256 {instance.sha256}")
    clean_lab.wait_console(instance, "VOLMIG-READY")


def test_a_shutdown_leaves_the_disk_clean(clean_lab):
    instance = clean_lab.instance(UUID, NAME, disk_bytes=64 << 20)
    clean_lab.start(instance)
    clean_lab.wait_console(instance, "VOLMIG-READY")
    clean_lab.dst.run(["virsh", "shutdown", NAME])
    off(clean_lab)
    assert "VOLMIG-SHUTDOWN" in clean_lab.console(instance)
    clean_lab.dst.run(f"qemu-img convert -f qcow2 -O raw {instance.disk} /var/tmp/raw && e2fsck -fn /var/tmp/raw")
    clean_lab.dst.run("rm /var/tmp/raw")


def test_an_instance_runs_while_the_filer_squashes_root(clean_lab):
    clean_lab.squash(True)
    clean_lab.mount_share()
    instance = clean_lab.instance(UUID, NAME, disk_bytes=64 << 20)
    clean_lab.start(instance)
    clean_lab.wait_console(instance, f"VOLMIG-DATA sha256 {instance.sha256}")


def test_a_volume_of_the_source_is_what_the_instance_finds(clean_lab):
    digest = clean_lab.volume(clean_lab.src, f"{UUID}_disk.local", 64 << 20, data_mb=4)
    instance = clean_lab.instance(UUID, NAME, disk_bytes=64 << 20)
    raw = f"/dev/vg_nova0/{UUID}_disk.local"
    image = clean_lab.src.run(
        f"qemu-img convert -f raw -O qcow2 {raw} /root/image && base64 /root/image && rm /root/image"
    )
    clean_lab.dst.run(f"base64 -d >{instance.disk}", stdin=image)
    clean_lab.start(instance)
    clean_lab.wait_console(instance, f"VOLMIG-DATA sha256 {digest}")
