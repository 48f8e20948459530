"""Nova by HTTP: sessions, short retries, typed errors; the only module that imports openstack, and it knows no job."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import keystoneauth1.exceptions as problems
import openstack.config
import openstack.exceptions
from keystoneauth1.adapter import Adapter
from keystoneauth1.session import Session

from hosts.remote.host import Access, Denied, Garbled, HostError, TooOld, Unreachable

NEEDED = (2, 73)  # locked_reason
NEWEST = (2, 96)  # what later ones add is not read
BUDGET = 12.0  # seconds that one call may take with its retries: a tick has twenty
PATIENCE = 8.0  # seconds that one answer may take
PAUSES = (0.5, 1.5)
KEPT = 32  # sessions kept open in one worker
PLAIN = "2.53"  # from 2.88 on, a list of hypervisors asks every one of them for its uptime
ACTIONS = (2, 84)  # an event of an action says what went wrong
MIGRATIONS = "2.59"
EMPTY = (404, 410)


class Nova:
    """One cloud, entered with one credential; what it returns are Nova's own documents.

    Raises Unreachable for what passes by itself (5xx, no connection), Denied for 401 and 403, TooOld for an API without
    locked_reason. A token that expired is fetched anew by the session; nothing that changes something is sent twice.
    """

    def __init__(self, access: Access, session: Session, region: dict[str, Any]) -> None:
        self.access, self.session, self.region = access, session, region
        self.compute = self._adapter("compute")
        self.newest: tuple[int, int] | None = None
        self.turn = threading.Lock()  # two threads with an expired token would throw away each other's new one

    def _adapter(self, service: str) -> Adapter:
        where = {name: self.region.get(f"{service}_{name}") or self.region.get(name) for name in ("interface",)}
        override = self.region.get(f"{service}_endpoint_override")
        return Adapter(
            self.session,
            service_type=service,
            region_name=self.region.get("region_name") or None,
            endpoint_override=override,
            **where,
        )

    # Reading

    def server(self, uuid: str) -> dict[str, Any] | None:
        """The server's document; None when there is none."""
        found = self.get(f"/servers/{uuid}", none=True)
        return found["server"] if found else None

    def actions(self, uuid: str, limit: int = 20) -> list[dict[str, Any]]:
        """What was asked of it, newest first; of a server that is gone too."""
        found = self.get(f"/servers/{uuid}/os-instance-actions?limit={limit}", self.version(ACTIONS), none=True)
        return list(found["instanceActions"]) if found else []

    def action(self, uuid: str, request: str) -> dict[str, Any]:
        """One of them with its events; empty when it is not on record (yet)."""
        found = self.get(f"/servers/{uuid}/os-instance-actions/{request}", self.version(ACTIONS), none=True)
        return dict(found["instanceAction"]) if found else {}

    def migrations(self, uuid: str) -> list[dict[str, Any]]:
        """Migrations, resizes and evacuations of an instance, GET /os-migrations."""
        return list(self.get(f"/os-migrations?instance_uuid={uuid}", MIGRATIONS)["migrations"])

    def services(self) -> list[dict[str, Any]]:
        """The nova-compute services with state and status, GET /os-services."""
        return list(self.get("/os-services?binary=nova-compute", PLAIN)["services"])

    def hypervisors(self) -> Iterator[dict[str, Any]]:
        """All hypervisors of Nova, page after page, GET /os-hypervisors/detail."""
        yield from self._pages("/os-hypervisors/detail?", "hypervisors", PLAIN)

    def servers(self, marker: str, limit: int) -> list[dict[str, Any]]:
        """One page of the servers of all projects, after `marker`; an empty list at the end."""
        after = f"&marker={marker}" if marker else ""
        found = self.get(f"/servers/detail?all_tenants=1&limit={limit}&sort_key=uuid&sort_dir=asc{after}")
        return list(found["servers"])

    def image(self, uuid: str) -> dict[str, Any]:
        """An image's document from Glance, its properties on the top level; empty when it is gone."""
        return self.get(f"/v2/images/{uuid}", service="image", none=True) or {}

    def projects(self) -> list[dict[str, Any]]:
        """The projects that the credential may list, from Keystone."""
        return list(self.get("/projects", service="identity")["projects"])

    def who(self) -> dict[str, Any]:
        """Whom the credential stands for: user, project and the names of its roles."""
        with self._said("log in"):
            plugin: Any = self.session.auth
            reference = plugin.get_access(self.session)
            return {
                "user": str(reference.username or ""),
                "user_id": str(reference.user_id or ""),
                "project": str(reference.project_name or ""),
                "roles": sorted(str(name) for name in reference.role_names or ()),
                "rules": reference.application_credential_access_rules,
            }

    def _pages(self, path: str, name: str, version: str, limit: int = 500) -> Iterator[dict[str, Any]]:
        marker = ""
        while True:
            after = f"&marker={marker}" if marker else ""
            page = list(self.get(f"{path}limit={limit}{after}", version)[name])
            yield from page
            if len(page) < limit:
                return
            marker = str(page[-1]["id"])

    # Changing

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, str, str]:
        """Ask for a change, once: (status, request id, what Nova says against it). 4xx but 401 and 403 are returned."""
        response = self._once("POST", path, self.version(), PATIENCE, json=body)
        self._refuse("POST", path, response)
        return response.status_code, str(response.headers.get("x-openstack-request-id", "")), complaint(response)

    # Versions

    def version(self, most: tuple[int, int] = NEWEST) -> str:
        """The microversion to speak: the newest that is known here and there; raises TooOld below 2.73."""
        if self.newest is None:
            self.newest = self._negotiated()
        if self.newest < NEEDED:
            found = f"its API goes up to {dotted(self.newest)}"
            next_step = f"Locking with a reason needs {dotted(NEEDED)}. Use libvirt on each hypervisor for this cloud."
            raise TooOld(self._tried("read the API version"), found, next_step)
        return dotted(min(most, self.newest))

    def _negotiated(self) -> tuple[int, int]:
        what = "read its versions"
        with self._said(what):
            data = self.compute.get_endpoint_data()
        # An old Nova, or one that did not answer just now: the library does not say.
        if data is None or data.max_microversion is None:
            self._refuse("GET", "/", self._once("GET", "/", "", PATIENCE))
            return (2, 1)
        major, minor = data.max_microversion[:2]
        return int(major), int(minor)

    # The way there

    def get(self, path: str, version: str = "", service: str = "compute", none: bool = False) -> Any:
        """The JSON document at `path`, tried three times within BUDGET; None for 404 where `none` allows it."""
        until, pauses = time.monotonic() + BUDGET, iter(PAUSES)
        while True:
            try:
                version = version or (self.version() if service == "compute" else "")
                response = self._once("GET", path, version, max(min(PATIENCE, until - time.monotonic()), 1), service)
                self._refuse("GET", path, response)
                break
            except Unreachable:
                pause = next(pauses, None)
                if pause is None or time.monotonic() + pause > until:
                    raise
                time.sleep(pause)
        if none and response.status_code in EMPTY:
            return None
        if response.status_code >= 400:
            raise HostError(self._tried(f"call GET {path}"), f"{response.status_code} {complaint(response)}")
        return self._json(path, response)

    def _json(self, path: str, response: Any) -> Any:
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Garbled(self._tried(f"call GET {path}"), f"the response is not JSON: {response.text[:80]!r}")
        return found

    def _once(self, method: str, path: str, version: str, timeout: float, service: str = "compute", **more: Any) -> Any:
        adapter = self.compute if service == "compute" else self._adapter(service)
        more |= {"microversion": version} if version else {}
        with self._said(f"call {method} {path}"), self.turn:
            return adapter.request(path, method, raise_exc=False, timeout=timeout, **more)

    def _refuse(self, method: str, path: str, response: Any) -> None:
        tried = self._tried(f"call {method} {path}")
        if response.status_code >= 500 or response.status_code == 429:
            raise Unreachable(tried, f"it answered {response.status_code} {complaint(response)}".strip())
        if response.status_code in (401, 403):
            next_step = "Check the credential on the cloud's page."
            raise Denied(tried, f"{response.status_code} {complaint(response)}", next_step)

    @contextmanager
    def _said(self, what: str) -> Iterator[None]:
        try:
            yield
        except problems.ClientException as error:
            self._translate(what, error)
        except Exception as error:
            # The library raises this very class where a clouds.yaml leaves the password out.
            if type(error) is not Exception:
                raise
            next_step = "Complete the credential in clouds.yaml."
            raise HostError(self._tried(what), plain(error), next_step) from error

    def _translate(self, what: str, error: problems.ClientException) -> NoReturn:
        tried, found = self._tried(what), plain(error)
        if isinstance(error, problems.SSLError):
            raise HostError(tried, f"its certificate is not trusted: {found}", "Give the CA file.") from error
        status = getattr(error, "http_status", 0) or 0
        if status in (401, 403):
            next_step = "Enter the credential again on the cloud's page."
            raise Denied(tried, f"Keystone rejects the credential: {found}", next_step) from error
        if status in range(400, 429):
            raise HostError(tried, f"Keystone answered {status}: {found}") from error
        if isinstance(error, problems.EndpointNotFound):
            raise HostError(tried, f"its catalogue has no such endpoint: {found}", "Check the region.") from error
        raise Unreachable(tried, found) from error

    def _tried(self, what: str) -> str:
        return f"{what} at {self.access.name}"


def dotted(version: tuple[int, int]) -> str:
    """A version as Nova writes it, 2.73."""
    return f"{version[0]}.{version[1]}"


def plain(error: Exception) -> str:
    """What an error says, on one line and of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def complaint(response: Any) -> str:
    """What Nova says in the body of a refusal; empty for a good answer."""
    if response.status_code < 400:
        return ""
    try:
        found = response.json()
        said = next((each["message"] for each in found.values() if isinstance(each, dict) and "message" in each), "")
    except (ValueError, AttributeError):
        said = ""
    return " ".join(str(said).split())[:300].rstrip(".")


_open: dict[Access, Nova] = {}
_door = threading.Lock()
Connect = Callable[[Access], Nova]


def connect(access: Access) -> Nova:
    """The way into a cloud, kept open in this process with its token; nothing is asked yet."""
    with _door:
        if access not in _open:
            while len(_open) >= KEPT:
                _open.pop(next(iter(_open)))
            _open[access] = _entered(access)
        return _open[access]


def forget() -> None:
    """Every session of this process is closed: the next call logs in anew."""
    with _door:
        _open.clear()


def _entered(access: Access) -> Nova:
    try:
        region = _region(access)
        session = region.get_session()
    except (openstack.exceptions.ConfigException, problems.ClientException, OSError, TypeError, ValueError) as error:
        raise HostError(f"log in to {access.name}", plain(error), "Check the cloud's settings.") from error
    session.timeout = PATIENCE
    return Nova(access, session, dict(region.config))


def _region(access: Access) -> Any:
    where: dict[str, Any] = {"region_name": access.region} if access.region else {}
    if access.entry:
        files = [access.file] if access.file else None
        loader = openstack.config.OpenStackConfig(config_files=files, load_envvars=False)
        return loader.get_one(cloud=access.entry, **where)
    loader = openstack.config.OpenStackConfig(load_yaml_config=False, load_envvars=False)
    where |= {"verify": access.verify, **({"cacert": access.ca_file} if access.ca_file else {})}
    return loader.get_one(auth_type=access.auth_type, auth=dict(access.auth), **where)
