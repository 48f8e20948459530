"""Read-only mode in the web server: nothing that would change anything is let through, and every page says why."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import Resolver404, resolve

from volmig import incarnation
from volmig.api.problems import problem
from volmig.refusals import Sentence

SAFE = {"GET", "HEAD", "OPTIONS", "TRACE"}
# By the names of their addresses. Adopting asks for the password again, so the page that takes it has to answer, too.
STILL = {"login", "login_code", "logout", "confirm", "adopt", "adopt_verb"}
# Without the reason, which names hosts: whoever asks may not have logged in.
WHY = f"Nothing was changed: volmig is read-only. Its pages show why. {incarnation.WHAT_TO_DO}"


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Answers 503 (code read-only) to what would change something while volmig is read-only."""

    def answer(request: HttpRequest) -> HttpResponse:
        if request.method in SAFE or name_of(request) in STILL:
            return get_response(request)
        return refused(request) if incarnation.read_only() else get_response(request)

    return answer


def name_of(request: HttpRequest) -> str:
    """The name of a request's address, empty when there is none."""
    try:
        return resolve(request.path_info).url_name or ""
    except Resolver404:
        return ""


def refused(request: HttpRequest) -> HttpResponse:
    """503 with the reason, as a page or as a problem document."""
    if request.path_info.startswith("/api/"):
        return problem(503, [Sentence("read-only", WHY)])
    return render(request, "read_only.html", status=503)
