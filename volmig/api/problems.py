"""How the API says no: a problem (RFC 9457) for each exception that an operation may raise."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from django.core.exceptions import PermissionDenied, SuspiciousOperation, ValidationError
from django.forms import BaseForm
from django.http import Http404, HttpRequest, HttpResponse
from ninja import NinjaAPI, Schema
from ninja.errors import AuthenticationError, HttpError
from ninja.errors import ValidationError as Unfit

from volmig.queue import WINDOW
from volmig.refusals import Moved, Refused, Sentence

log = logging.getLogger(__name__)
PROBLEM = "application/problem+json"
PERSONAL = {"no-role", "no-member", "token-scope"}  # no state of things would make these right
NO_SUCH = Sentence("not-found", "Not found, or you do not have access.")
NO_TOKEN = Sentence("no-token", "Send a token: Authorization: Bearer volmig_… Your account page creates tokens.")
MOVED = Sentence("moved", "A worker changed it first. Nothing was changed; read it again.")
UNFIT = Sentence("not-understood", "The request is malformed or too long.")
FAULT = Sentence("fault", "Internal error; volmig's log has the details.")
TITLES = {
    400: "Invalid request", 401: "Authentication required", 403: "Not allowed", 404: "Not found",
    405: "Method not allowed", 409: "Refused", 412: "Changed", 422: "Not acceptable", 428: "If-Match required",
    429: "Too many requests", 500: "Internal error", 503: "Read-only",
}  # fmt: skip


class Why(Schema):
    """One reason; `field` is what of the request it is about, empty when it is about all of it."""

    code: str
    detail: str
    field: str = ""


class Problem(Schema):
    """A refusal as RFC 9457 has it. `code` is that of the first reason, and stays when the words get better."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[Why]


class Stop(Exception):  # noqa: N818 - as Refused is
    """Answers with a problem."""

    def __init__(self, status: int, *sentences: Sentence, **headers: str) -> None:
        self.status, self.sentences, self.headers = status, sentences, headers
        super().__init__(*sentences)


class Invalid(Exception):  # noqa: N818 - as Refused is
    """A form that is not filled in well; `about` are the fields that its sentences are about."""

    def __init__(self, sentences: list[Sentence], about: list[str]) -> None:
        self.sentences, self.about = sentences, about
        super().__init__(*sentences)


def problem(status: int, sentences: Iterable[Sentence], fields: Iterable[str] = (), **headers: str) -> HttpResponse:
    """A document of RFC 9457; its code is that of the first sentence, `fields` names what each is about."""
    reasons = list(sentences)
    about = [*fields, *[""] * len(reasons)]
    errors = [Why(code=each.code, detail=each, field=name) for each, name in zip(reasons, about, strict=False)]
    told = Problem(
        type=f"urn:volmig:problem:{reasons[0].code}",
        title=TITLES[status],
        status=status,
        detail=" ".join(reasons),
        code=reasons[0].code,
        errors=errors,
    )
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpResponse(told.model_dump_json(), status=status, content_type=PROBLEM, headers=named)


# How exceptions are told


def denied(request: HttpRequest, error: Any) -> HttpResponse:
    """403 for PermissionDenied."""
    said = error.args[0] if error.args else ""
    return problem(403, [said if isinstance(said, Sentence) else Sentence("not-allowed", str(said))])


def refused(request: HttpRequest, error: Any) -> HttpResponse:
    """403 for refusals of a person, 429 for too many requests, 409 for the current state."""
    if any(each.code == "too-many-requests" for each in error.sentences):
        return problem(429, error.sentences, Retry_After=str(WINDOW))
    personal = any(each.code in PERSONAL for each in error.sentences)
    return problem(403 if personal else 409, error.sentences)


def unfit(request: HttpRequest, error: Any) -> HttpResponse:
    """What does not even have the shape that the description asks for."""
    names = [".".join(str(part) for part in each["loc"][1:] if part not in BODIES) for each in error.errors]
    sentences = [Sentence(each["type"].replace("_", "-"), f"{each['msg']}.") for each in error.errors]
    return problem(422, sentences, names)


BODIES = ("told", "wanted")  # the arguments of operations that stand for the whole body


def invalid(request: HttpRequest, error: Any) -> HttpResponse:
    """422 for a ValidationError of a model."""
    return problem(422, [Sentence(getattr(error, "code", None) or "invalid", str(each)) for each in error.messages])


def ill_filled(request: HttpRequest, error: Any) -> HttpResponse:
    """422 for a form, with the field of each sentence."""
    return problem(422, error.sentences, error.about)


def stopped(request: HttpRequest, error: Any) -> HttpResponse:
    """The status that was raised, with its headers."""
    return problem(error.status, error.sentences, **error.headers)


def not_understood(request: HttpRequest, error: Any) -> HttpResponse:
    """400 for a body that is not JSON."""
    return problem(error.status_code, [Sentence("not-understood", str(error))])


def faulty(request: HttpRequest, error: Any) -> HttpResponse:
    """500 for everything else; the log has the traceback, the response has nothing of it."""
    log.exception("%s %s", request.method, request.path, exc_info=error)
    return problem(500, [FAULT])


def say(status: int, sentence: Sentence, **headers: str) -> Callable[[HttpRequest, Any], HttpResponse]:
    """A handler that always gives this status and sentence."""
    return lambda request, error: problem(status, [sentence], **headers)


HANDLERS: dict[type[Exception], Callable[[HttpRequest, Any], HttpResponse]] = {
    Exception: faulty,
    HttpError: not_understood,
    AuthenticationError: say(401, NO_TOKEN, WWW_Authenticate="Bearer"),
    Http404: say(404, NO_SUCH),
    Invalid: ill_filled,
    Moved: say(409, MOVED),
    PermissionDenied: denied,
    SuspiciousOperation: say(400, UNFIT),
    Refused: refused,
    Stop: stopped,
    Unfit: unfit,
    ValidationError: invalid,
}


def tell_problems(api: NinjaAPI) -> None:
    """Registers the handlers: every refusal of the API is a problem document."""
    for kind, handler in HANDLERS.items():
        api.add_exception_handler(kind, handler)


def checked(form: BaseForm, **names: str) -> Any:
    """The form when it is filled in well; else the page's own sentences, by field, are the answer.

    `names` are the API's words for fields that the page calls otherwise.
    """
    if form.is_valid():
        return form
    sentences, about = [], []
    for field, errors in form.errors.get_json_data().items():
        for each in errors:
            sentences.append(Sentence((each["code"] or "invalid").replace("_", "-"), each["message"]))
            about.append("" if field == "__all__" else names.get(field, field))
    raise Invalid(sentences, about)
