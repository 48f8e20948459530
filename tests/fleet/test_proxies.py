"""packaging/nginx and packaging/caddy, with TLS in front of real pages: what clients send is replaced, sockets pass."""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.family import end_all
from tests.rig import free_port
from volmig.management.commands import up

ROOT = Path(__file__).resolve().parents[2]
NAME, PASSWORD = "volmig.example.org", "correct horse battery"
CERTIFICATE = (
    f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={NAME} "
    f"-addext subjectAltName=DNS:{NAME} -keyout privkey.pem -out fullchain.pem"
)
SECURITY = ("strict-transport-security", "content-security-policy", "x-frame-options", "x-content-type-options")


class Proxy:
    """A configuration of packaging/ with this test's ports, certificate and pages, and what a client sees of it."""

    def __init__(self, folder, text, places, pages):
        self.folder, self.plain, self.tls, self.dead = folder, free_port(), free_port(), free_port()
        folder.mkdir()
        for old, new in places(self, pages).items():
            assert old in text, f"the configuration has no {old}"
            text = text.replace(old, new)
        (folder / "configuration").write_text(text)
        subprocess.run(CERTIFICATE.split(), cwd=folder, check=True, capture_output=True)
        self.authority = f"{NAME}:{self.tls}"

    def start(self, command):
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_for(self.tls, self.process, self.folder / "log")

    def stop(self):
        end_all([self.process], 20)

    def curl(self, path, *words, port=0, scheme="https"):
        """Status, protocol, headers (those that are repeated more than once) and cookies of an answer, by curl."""
        port = port or self.tls
        command = ["curl", "-sS", "-i", "--max-time", "20", "--resolve", f"{NAME}:{port}:127.0.0.1"]
        command += ["--cacert", str(self.folder / "fullchain.pem"), *words, f"{scheme}://{NAME}:{port}{path}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        head, _, body = done.stdout.partition("\n\n")
        first, *lines = head.splitlines()
        headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return int(first.split()[1]), first.split()[0], headers, body

    def log_in(self, *words):
        """A session over TLS, its cookies in the file "cookies"; how the login is answered."""
        status, _, _, body = self.curl("/login/", "-c", "cookies")
        assert status == 200, body
        token = next(line.split()[-1] for line in self.cookies() if "csrftoken" in line)
        fields = {"username": "ada", "password": PASSWORD, "csrfmiddlewaretoken": token}
        typed = [word for name, value in fields.items() for word in ("--data-urlencode", f"{name}={value}")]
        referer = ("-e", f"https://{self.authority}/login/")
        return self.curl("/login/", "-b", "cookies", "-c", "cookies", *referer, *typed, *words)

    def cookies(self):
        return (self.folder / "cookies").read_text().splitlines()

    async def beat(self, origin):
        """The first line of a live page's connection."""
        trusted = ssl.create_default_context(cafile=self.folder / "fullchain.pem")
        names = [line.split()[-2:] for line in self.cookies() if "__Host-" in line]
        headers = {"Cookie": "; ".join("=".join(pair) for pair in names)}
        live = connect(
            f"wss://{self.authority}/live/inbox/", host="127.0.0.1", port=self.tls, ssl=trusted, origin=origin,
            server_hostname=NAME, additional_headers=headers, open_timeout=20, proxy=None,
        )  # fmt: skip
        async with live as page:
            return await asyncio.wait_for(page.recv(), 20)


def wait_for(port, process, log):
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def for_nginx(proxy, pages):
    return {
        "listen 80;": f"listen 127.0.0.1:{proxy.plain};",
        "listen 443 ssl": f"listen 127.0.0.1:{proxy.tls} ssl",
        "    listen [::]:80;\n": "",
        "    listen [::]:443 ssl http2;\n": "",
        "server 127.0.0.1:8001": f"server 127.0.0.1:{proxy.dead}",
        "server 127.0.0.1:8002": f"server 127.0.0.1:{pages}",
        "/etc/ssl/volmig": str(proxy.folder),
    }


def for_caddy(proxy, pages):
    everywhere = f"{{\nadmin off\nhttp_port {proxy.plain}\nhttps_port {proxy.tls}\n}}"
    return {
        "{$SITE:volmig.example.org} {": f"{everywhere}\n{NAME} {{",
        "127.0.0.1:8001 127.0.0.1:8002": f"127.0.0.1:{proxy.dead} 127.0.0.1:{pages}",
        "/etc/ssl/volmig": str(proxy.folder),
    }


WHOLE = """
daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
events {{ worker_connections 200; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  include {folder}/configuration;
}}
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages as they run behind a proxy: their port, and the file of their database."""
    data, port = tmp_path_factory.mktemp("pages"), free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("VOLMIG_")},
        "VOLMIG_DATA": str(data),
        "VOLMIG_ALLOWED_HOSTS": NAME,
        "VOLMIG_PUBLIC_URL": f"https://{NAME}",
        "VOLMIG_BEHIND_PROXY": "yes",
        "VOLMIG_ADMIN_USER": "ada",
        "VOLMIG_ADMIN_PASSWORD": PASSWORD,
    }
    command = [sys.executable, "manage.py", "up", "web", "--bind", f"127.0.0.1:{port}"]
    with (data / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(port, running, data / "log")
        yield port, data / "db.sqlite3"
    finally:
        end_all([running], 40)


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxy(request, tmp_path_factory, pages):
    program = shutil.which(request.param) or shutil.which(f"/usr/sbin/{request.param}")
    if not program:
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp("proxy") / request.param
    if request.param == "nginx":
        one = Proxy(folder, (ROOT / "packaging/nginx/volmig.conf").read_text(), for_nginx, pages[0])
        (folder / "nginx.conf").write_text(WHOLE.format(folder=folder))
        one.start([program, "-c", str(folder / "nginx.conf"), "-e", "stderr"])
    else:
        one = Proxy(folder, (ROOT / "packaging/caddy/Caddyfile").read_text(), for_caddy, pages[0])
        one.start([program, "run", "--config", str(folder / "configuration"), "--adapter", "caddyfile"])
    yield one
    one.stop()


def values(headers, name):
    return [value for each, value in headers if each == name]


@pytest.mark.parametrize("configuration", ["nginx/volmig.conf", "caddy/Caddyfile"])
def test_a_proxy_closes_idle_connections_before_the_web_process_does(configuration):
    text = (ROOT / "packaging" / configuration).read_text()
    (seconds,) = re.findall(r"^\s*keepalive(?:_timeout)? (\d+)s;?$", text, re.M)
    assert int(seconds) < up.KEEP_ALIVE_SECONDS


def test_plain_http_is_sent_to_https(proxy):
    status, _, headers, _ = proxy.curl("/login/?next=/", port=proxy.plain, scheme="http")
    assert status in (301, 308)
    assert values(headers, "location")[0].startswith(f"https://{NAME}")
    assert values(headers, "location")[0].endswith("/login/?next=/")


def test_a_page_comes_over_http_2_with_each_security_header_once_though_one_web_process_is_away(proxy):
    for _ in range(3):
        status, protocol, headers, body = proxy.curl("/login/", "--http2")
        assert (status, protocol) == (200, "HTTP/2")
        assert "Log in" in body
        assert {name: len(values(headers, name)) for name in SECURITY} == dict.fromkeys(SECURITY, 1)


def test_a_login_is_recorded_with_the_clients_real_address_whatever_its_headers_claim(proxy, pages):
    claims = ("-H", "X-Forwarded-For: 6.6.6.6", "-H", "X-Forwarded-Proto: http", "-H", "X-Forwarded-Host: evil.example")
    claims += ("-H", "Forwarded: for=6.6.6.6;proto=http;host=evil.example", "--interface", "127.0.0.5")
    status, _, headers, _ = proxy.log_in(*claims)
    assert (status, values(headers, "location")) == (302, ["/"])
    with contextlib.closing(sqlite3.connect(pages[1])) as database:
        addresses = database.execute("SELECT address FROM accounts_login ORDER BY id DESC LIMIT 1").fetchall()
    assert addresses == [("127.0.0.5",)]


def test_one_address_that_logs_in_without_end_is_bounded_by_nginx_and_no_other_is(proxy):
    if proxy.folder.name != "nginx":
        pytest.skip("Caddy has no such limit without a module")
    with ThreadPoolExecutor(8) as many:
        answers = list(many.map(lambda _: proxy.curl("/login/", "--interface", "127.0.0.6")[0], range(120)))
    assert 429 in answers
    assert answers.count(200) >= 40, "an office logs in at once"
    assert proxy.curl("/login/", "--interface", "127.0.0.7")[0] == 200
    assert proxy.curl("/healthz/live", "--interface", "127.0.0.6")[0] == 200, "only logins are"


def test_a_live_page_is_connected_from_this_site_only(proxy):
    proxy.log_in()
    assert asyncio.run(proxy.beat(f"https://{proxy.authority}"))
    with pytest.raises(InvalidStatus) as refused:
        asyncio.run(proxy.beat("https://evil.example"))
    assert refused.value.response.status_code == 403


def test_a_body_that_is_too_large_is_refused_before_it_reaches_volmig(proxy):
    (proxy.folder / "large").write_bytes(b"x" * (2 << 20))
    status, *_ = proxy.curl("/login/", "-X", "POST", "--data-binary", "@large", "--http1.1", "-H", "Expect:")
    assert status in (413, 502)  # Caddy 2.6 has no better word for it
    assert proxy.curl("/login/")[0] == 200, "it counts against no web process"
