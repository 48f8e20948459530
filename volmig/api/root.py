"""The API as a whole: its addresses, its OpenAPI document, and the page and the text made of that."""

import io
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.serializers.json import DjangoJSONEncoder
from django.http import FileResponse, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe
from ninja import NinjaAPI, Query, Router
from ninja.openapi.schema import OpenAPISchema

from volmig import client as volmig_client
from volmig.accounts.roles import needs, roles_of
from volmig.api import lists, schemas
from volmig.api.auth import Bearer
from volmig.api.problems import NO_SUCH, PROBLEM, TITLES, Problem, checked, problem, tell_problems
from volmig.paging import page
from volmig.record import signing
from volmig.record.evidence import heads_file
from volmig.record.views import EventFilter
from volmig.refusals import Sentence

ABOUT = (
    "The verbs of volmig's pages for programs, with the same refusals. Every request shows a token. "
    "Where nothing else is said, sizes are bytes, rates bytes per second, and times UTC; what ends in _mib is MiB/s."
)
PREFIX = "/api/v1/"
record = Router(tags=["You and the audit log"])


@record.get("/me", response=schemas.Me, summary="Show the token's owner and scope")
def me(request: Any) -> Any:
    return schemas.Me.of(request.token, roles_of(request.user))


class Filters(lists.Edge):
    """As on the audit page: who, what, on which object, of which migration, since when."""

    who: schemas.Words = ""
    what: schemas.Words = ""
    on: schemas.Words = ""
    job: schemas.Number | None = None
    since: schemas.Moment = ""


@record.get("/events", response=schemas.Events, summary="Read the audit log")
@needs("audit")
def the_record(request: HttpRequest, wanted: Query[Filters]) -> Any:
    """Newest first; `after=N` returns events older than event N, `before=N` newer ones."""
    form = checked(EventFilter(wanted.dict()))
    found = page(form.narrowed(), "-seq", request.GET, wanted.limit, key="seq")
    return {"items": [schemas.Event.of(row) for row in found], "next": lists.following(request, found)}


TEXT = {"application/x-ndjson": {"schema": {"type": "string"}}}
JSON_LINES = {"responses": {200: {"description": "JSON lines", "content": TEXT}}}


@record.get("/evidence/keys", response=schemas.EvidenceKeys, by_alias=True, summary="Public keys of evidence")
@needs("view")
def evidence_keys(request: HttpRequest) -> Any:
    """Anyone can verify published heads and archives with these keys and verify_evidence.py: the last one is in use,
    each was signed by the one before it. The same as /evidence/keys.json, which needs no token."""
    return signing.published()


@record.get("/evidence/heads", summary="Published heads of the audit log", openapi_extra=JSON_LINES)
@needs("audit")
def evidence_heads(request: HttpRequest) -> Any:
    """The whole file as on disk, one head per line. A copy on another machine proves the state of the audit log."""
    return heads_file()


class Api(NinjaAPI):
    """Its document also lists the problems, which ninja does not know."""

    def get_root_path(self, path_params: Any) -> str:
        """The prefix of all addresses, also behind a proxy."""
        return PREFIX

    def get_openapi_operation_id(self, operation: Any) -> str:
        """The function's name, so that generated clients stay the same when modules move."""
        return str(operation.view_func.__name__).replace("_", "-")

    def get_openapi_schema(self, **where: Any) -> OpenAPISchema:
        """The document with the problems of each operation."""
        described = super().get_openapi_schema(**where)
        described["components"]["schemas"] |= PROBLEM_SHAPES
        for address, methods in described["paths"].items():
            for method, operation in methods.items():
                tell(address, method, operation)
        return described


shown = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
PROBLEM_SHAPES = {**shown.pop("$defs"), "Problem": shown}


def tell(address: str, method: str, operation: dict[str, Any]) -> None:
    """Adds to an operation the problems that it may answer with, and the headers that it reads."""
    statuses = {400, 401, 403, 422, 429}
    statuses |= {404} if "{" in address else set()
    statuses |= {405} if method else set()
    statuses |= {409} if method != "get" else set()
    verbs = method == "post" and "/jobs/{number}/" in address
    statuses |= {412} if verbs or method == "put" else set()
    statuses |= {428} if method == "put" else set()
    for status in sorted(statuses):
        body = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        operation["responses"][status] = {"description": TITLES[status], "content": body}
    headers = ["If-Match"] if 412 in statuses else []
    headers += ["If-None-Match"] if 304 in operation["responses"] else []
    for name in headers:
        value = {"type": "string"}
        operation["parameters"].append({"in": "header", "name": name, "schema": value, "required": False})


api = Api(
    title="volmig",
    version="1",
    description=ABOUT,
    docs_url=None,
    auth=Bearer(),
    urls_namespace="api",
)
tell_problems(api)
api.add_router("/hypervisors", "hosts.api.operations.router")
api.add_router("/jobs", "jobs.api.operations.router")
api.add_router("", "jobs.api.operations.checking")
api.add_router("", "jobs.api.operations.around")
api.add_router("", "hosts.api.operations.around")
api.add_router("", record)


def open_to_programs(view: Callable[..., Any]) -> Callable[..., Any]:
    """No login page: operations check the token. Refusals outside of operations are problem documents as well."""

    @wraps(view)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response = view(request, *args, **kwargs)
        if response.status_code == 405:
            said = Sentence("no-such-method", f"{request.method} is not one of {response['Allow']}.")
            response = problem(405, [said], Allow=response["Allow"])
        return response  # type: ignore[no-any-return]

    return login_not_required(answer)


@open_to_programs
def nothing(request: HttpRequest, rest: str) -> HttpResponse:
    """404 as a problem document for every other address of the API."""
    return problem(404, [NO_SUCH])


def addresses() -> list[URLPattern]:
    """The addresses of the API, in a separate namespace."""
    found, _, _ = api.urls
    kept: list[Any] = [each for each in found if getattr(each, "name", "") != "api-root"]
    for each in kept:
        view = require_safe(each.callback) if each.name == "openapi-json" else each.callback
        each.callback = open_to_programs(view)
    return [*kept, path("<path:rest>", nothing, name="nothing")]


urls = (addresses(), "api", "api")


# For people


def described() -> dict[str, Any]:
    """The document as it is served."""
    return json.loads(json.dumps(api.get_openapi_schema(path_prefix=PREFIX), cls=DjangoJSONEncoder))  # type: ignore[no-any-return]


def chapters() -> list[dict[str, Any]]:
    """The operations by their tags, each with what goes in and comes out, for the page and docs/reference.md."""
    document = described()
    shapes_of = document["components"]["schemas"]
    found: dict[str, list[dict[str, Any]]] = {}
    for address, methods in document["paths"].items():
        for method, operation in methods.items():
            found.setdefault(operation["tags"][0], []).append(entry(address, method, operation, shapes_of))
    return [{"name": name, "operations": operations} for name, operations in found.items()]


def entry(address: str, method: str, operation: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """One operation for the page and docs/reference.md."""
    parameters = [each for each in operation["parameters"] if each["in"] != "path"]
    good = {status: each for status, each in operation["responses"].items() if int(status) < 300}
    body = content(operation.get("requestBody", {}))
    return {
        "id": operation["operationId"],
        "method": method.upper(),
        "address": address,
        "summary": operation["summary"],
        "description": " ".join(operation.get("description", "").split()),
        "parameters": [f"{each['name']}{' (header)' if each['in'] == 'header' else ''}" for each in parameters],
        "sends": fields(body, known),
        "gives": {status: spoken(content(each)) for status, each in good.items()},
        "refuses": [status for status in operation["responses"] if int(status) >= 400],
    }


def content(told: dict[str, Any]) -> dict[str, Any]:
    """The shape of a body; an empty one when there is none."""
    bodies: list[dict[str, Any]] = list(told.get("content", {}).values())
    return bodies[0]["schema"] if bodies else {}


def fields(shape: dict[str, Any], known: dict[str, Any]) -> list[dict[str, Any]]:
    """What a document that is sent has in it."""
    whole = known.get(shape.get("$ref", "").rpartition("/")[2], shape)
    needed = whole.get("required", [])
    return [
        {"name": name, "kind": spoken(each), "needed": name in needed, "usual": json.dumps(each.get("default"))}
        for name, each in whole.get("properties", {}).items()
    ]


def spoken(shape: dict[str, Any]) -> str:
    """A shape in a word or two."""
    if "$ref" in shape:
        return str(shape["$ref"].rpartition("/")[2])
    if "anyOf" in shape:
        return " or ".join(spoken(each) for each in shape["anyOf"])
    if "enum" in shape:
        return ", ".join(json.dumps(each) for each in shape["enum"])
    if shape.get("type") == "array":
        return f"list of {spoken(shape.get('items', {}))}"
    return str(shape.get("format") or shape.get("type") or "")


@require_safe
def reference(request: HttpRequest) -> HttpResponse:
    """Every operation, as its description has it."""
    return render(request, "api/reference.html", {"chapters": chapters(), "about": ABOUT})


@require_safe
@login_not_required
def client(request: HttpRequest) -> FileResponse:
    """The command-line client as one file; it contains no secret."""
    file = io.BytesIO(Path(volmig_client.__file__).read_bytes())
    return FileResponse(file, as_attachment=True, filename="volmig", content_type="text/x-python; charset=utf-8")
