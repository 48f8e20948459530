"""The whole promise by the command-line client alone, on real hosts: two people's tokens carry a disk across."""

import re
import zipfile

import pytest

from volmig import client

pytestmark = pytest.mark.lab

OLD, NEW = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "c8d1a0b2-1111-4222-8333-944445555666"
SIZE = 128 << 20
WISH = (
    f"--source src --volume vg_nova0/{OLD}_disk.local --instance {NEW} --relay jump --relay-vg vg_nova0 --rate 12"
).split()


def test_two_peoples_tokens_and_the_client_carry_a_disk_to_a_guest_that_mounts_it(clean_lab, site, shell_of, tmp_path):
    lab = clean_lab
    lab.squash(True)
    lab.mount_share(acdirmax=3)
    digest = lab.volume(lab.src, f"{OLD}_disk.local", SIZE, data_mb=4, bulk_mb=48)
    source_before = lab.sha256(lab.src, f"/dev/vg_nova0/{OLD}_disk.local")
    instance = lab.instance(NEW, "db-new", disk_bytes=SIZE)
    lab.start(instance)
    lab.wait_console(instance, f"VOLMIG-DATA sha256 {instance.sha256}")
    volmig = site(True)
    olga, pavel = shell_of(volmig, "olga", "submit"), shell_of(volmig, "pavel", "approve")

    assert [each["hypervisor"] for each in olga.json("volumes", OLD)] == ["src"]
    code, printed, said = olga.run("preflight", *WISH, seconds=240)
    assert (code, "convert" in printed.lower()) == (0, True), said
    number = str(olga.json("submit", *WISH, "--key", "tonight")["number"])
    assert str(olga.json("submit", *WISH, "--key", "tonight")["number"]) == number

    code, _, said = olga.run("watch", number, "--every", "0.5", seconds=300)
    assert (code, "convert" in said) == (client.WAITING, True), said
    assert olga.run("approve", number, "--instance", NEW[-6:], "--reason", "Mine.")[0] == client.REFUSED
    code, printed, said = pavel.run("approve", number, "--instance", NEW[-6:], "--reason", "Agreed with the tenant.")
    assert (code, "Block by block equal" in printed) == (0, True), said
    lab.wait_console(instance, f"VOLMIG-DATA sha256 {digest}", timeout=180)

    assert olga.run("watch", number, "--until", "on_trial", seconds=180)[0] == 0
    assert olga.run("confirm", number)[0] == 0
    assert olga.run("watch", number, "--until", "done", seconds=120)[0] == 0
    assert olga.run("evidence", number, "--output", str(tmp_path / "evidence.zip"))[0] == 0
    with zipfile.ZipFile(tmp_path / "evidence.zip") as packed:
        events = packed.read(f"migration-{number}/events.jsonl").decode()
    acted = r'"session": "(token \d+)", [^\n]*"action": "(job.submit|approval.approve|job.confirm)"'
    assert re.findall(acted, events) == [
        ("token 1", "job.submit"),
        ("token 2", "approval.approve"),
        ("token 1", "job.confirm"),
    ]
    assert lab.sha256(lab.src, f"/dev/vg_nova0/{OLD}_disk.local") == source_before
    assert sorted(line.rpartition("/")[2] for line in lab.leftovers()) == ["README", "card.json", "disk.old"]
