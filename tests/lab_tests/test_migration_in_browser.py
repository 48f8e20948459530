"""The whole promise, in a browser on real hosts: two people carry a disk across, and the guest mounts it."""

import re

import pytest

from tests.people import approve, ask, confirm, wait_for_consent

pytestmark = [pytest.mark.lab, pytest.mark.browser]

OLD, NEW = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "c8d1a0b2-1111-4222-8333-944445555666"
SIZE = 512 << 20
DEVICE = f"/dev/vg_nova0/{OLD}_disk.local"
# Every percentage that the page shows for the conversion, as the page itself shows it.
RECORD_PERCENTAGES = """() => {
  window.percentages = new Set()
  const look = () => {
    const step = document.querySelector('#step-convert[aria-current=step]')
    const shown = document.querySelector('#running [data-percent]')
    if (step && shown) window.percentages.add(shown.dataset.percent)
  }
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, attributes: true})
}"""


@pytest.mark.parametrize(
    ("shipped", "squash", "runs"),
    [
        pytest.param(False, False, True, id="installed for a user, root not squashed, instance running"),
        pytest.param(
            *(True, True, False),
            id="shipped to root, root squashed, instance shut off before the swap",
            marks=pytest.mark.torture,  # of these the client's migration has the first two, rollbacks the third
        ),
    ],
)
def test_a_disk_crosses_the_relay_from_the_browser_to_a_guest_that_mounts_it(
    clean_lab, site, sign_in, shipped, squash, runs
):
    lab = clean_lab
    lab.squash(squash)
    lab.mount_share(acdirmax=3)
    digest = lab.volume(lab.src, f"{OLD}_disk.local", SIZE, data_mb=4, bulk_mb=64)
    source_before = lab.sha256(lab.src, DEVICE)
    instance = lab.instance(NEW, "db-new", disk_bytes=SIZE)
    lab.start(instance)
    lab.wait_console(instance, f"VOLMIG-DATA sha256 {instance.sha256}")
    volmig = site(shipped)
    olga, pavel = sign_in(volmig, "olga"), sign_in(volmig, "pavel")

    ask(olga, OLD, "disk.local", limit="16")
    olga.evaluate(RECORD_PERCENTAGES)
    wait_for_consent(olga)
    percentages = olga.evaluate("[...window.percentages]")
    assert len(percentages) >= 5, percentages

    if not runs:
        lab.dst.run("virsh -q shutdown db-new")
        lab.dst.wait("virsh domstate db-new | grep -q 'shut off'")
    backup_expected = None if runs else lab.sha256(lab.dst, instance.disk)
    approve(pavel, NEW)
    lab.wait_console(instance, f"VOLMIG-DATA sha256 {digest}", timeout=180)

    confirm(olga)
    planned, logged = planned_and_logged(olga)
    planned = [line for line in planned if ", if any, " not in line]  # this disk stands on no other file
    if not runs:  # it was off when its turn came: there was nothing to shut down
        planned = [line for line in planned if " shutdown " not in line]
    assert len(planned) == len(logged), (planned, logged)
    assert [line for line, shape in zip(logged, planned, strict=True) if not fits(shape, line)] == []

    job = re.search(r"filer: share ([0-9a-f-]{36})/", "\n".join(lab.leftovers()))[1]
    backup = f"/vol/nova/.volmig/{job}/disk.old"  # read on the filer: its folder is closed to a squashed root
    assert sorted(lab.leftovers()) == [f"filer: share {job}/{name}" for name in ("README", "card.json", "disk.old")]
    assert lab.sha256(lab.src, DEVICE) == source_before
    if backup_expected:
        assert lab.sha256(lab.filer, backup) == backup_expected
    assert lab.jump.run("systemctl is-active nfs-server", check=False).strip() == "inactive"


def planned_and_logged(page):
    """The commands of phases A to C as planned, and those that ran and changed something, in order."""
    address = page.url.split("?")[0]
    page.goto(f"{address}?tab=plan")
    steps = page.locator("#details .plan-step:has(h3)").all()
    planned = [
        line
        for step in steps
        if not step.locator("h3").inner_text().startswith("D ·")
        for line in step.locator(".commands li").all_inner_texts()
    ]
    page.goto(f"{address}?tab=log")
    logged = page.locator("#details tr:not(.probe) td.text").all_inner_texts()
    return planned, logged


def fits(shape, line):
    """Whether a logged command is the planned one with its «…» filled in."""
    pattern = "(.+)".join(re.escape(part) for part in re.split("«[^»]*»", shape))
    return re.fullmatch(pattern, line) is not None
