"""The install commands that the pages show, followed to the letter on a real machine."""

import html
import re

import pytest
from django.template.loader import render_to_string

from hosts.remote import hostctl, ssh
from hosts.remote.host import Address, HostctlDiffers, Request, Unreachable
from hosts.remote.hostctl import pack
from volmig.data_dir import ssh_public_key

pytestmark = pytest.mark.lab
LOGIN = "vm-newcomer"


def shown_commands(login, public_key):
    page = render_to_string("hosts/_install.html", {"login": login, "public_key": public_key, "hash": "x"})
    return html.unescape(re.search(r"<pre[^>]*>(.*?)</pre>", page, re.S).group(1))


@pytest.fixture
def newcomer(lab, tmp_path):
    """A login made on src by the commands of the page; root's own files there are as before afterwards."""
    guest = lab.src
    remove_login(guest)
    guest.run("rm -rf /root/install; mkdir -p /root/install /usr/local/libexec")
    guest.run("cp -a /usr/local/libexec /root/install/before")
    guest.write("/root/install/hostctl", pack.bundle())
    guest.run("set -e; cd /root/install; " + shown_commands(LOGIN, ssh_public_key(lab.key)))
    yield Address("127.0.0.1", guest.port, LOGIN, guest.host_key, key_file=str(lab.key))
    remove_login(guest)
    guest.run("rm -rf /usr/local/libexec; mv /root/install/before /usr/local/libexec; rm -rf /root/install")


def remove_login(guest):
    guest.run(f"pkill -KILL -u {LOGIN}; userdel -rf {LOGIN}; rm -f /etc/sudoers.d/{LOGIN}*", check=False)


def test_the_commands_shown_make_a_login_that_works_and_can_do_nothing_else(lab, newcomer):
    with ssh.connect(newcomer) as host:
        answer = host.call(Request("inventory"), 60)
        assert (answer.state, answer.evidence["user"]) == ("done", "root")
        assert answer.evidence["volume_groups"]
    guest = lab.src
    assert guest.run("stat -c '%U %a' /usr/local/libexec/volmig-hostctl").strip() == "root 755"
    allowed = guest.run(f"sudo -l -U {LOGIN}")
    assert '(root) NOPASSWD: /usr/local/libexec/volmig-hostctl ""' in allowed
    assert allowed.count("NOPASSWD") == 1
    refused = guest.run(["su", LOGIN, "-c", "sudo -n /usr/local/libexec/volmig-hostctl run x y"], check=False)
    assert refused == ""
    assert guest.run(["su", LOGIN, "-c", "sudo -n /usr/bin/id"], check=False) == ""


def test_nothing_but_hostctl_is_reached_by_that_login(newcomer):
    with ssh.connect(newcomer) as host:
        output = host.run("try a shell", "id; cat /etc/shadow", b"{}", 20)
        assert b"root:" not in output.stdout
        assert ssh.parsed(output.stdout)["hash"] == hostctl.source_hash()
        with pytest.raises(Unreachable, match="prohibited"), ssh.told_plainly("try a tunnel"):
            host.tunnel("127.0.0.1", 22)


def test_a_missing_or_older_hostctl_is_told_with_the_way_out(lab, newcomer):
    lab.src.run("rm /usr/local/libexec/volmig-hostctl")
    with ssh.connect(newcomer) as host, pytest.raises(HostctlDiffers, match="Install it"):
        host.call(Request("hello"))
