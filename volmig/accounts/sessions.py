"""Sessions end at the first request that comes too late, and leave no page in a cache."""

from collections.abc import Callable

from django.contrib import messages
from django.contrib.auth import logout
from django.http import HttpRequest, HttpResponse

from volmig.accounts.models import Login


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Logs out whose time is over, and notes each use of the sessions that go on."""

    def watch(request: HttpRequest) -> HttpResponse:
        by_itself = request.headers.get("HX-Request") == "true"
        if request.user.is_authenticated:
            follow(request, used=not by_itself)
        if by_itself and not request.user.is_authenticated:
            # The page as a whole goes to the login: its form is not to appear inside of a table.
            return HttpResponse(status=401, headers={"HX-Refresh": "true"})
        return get_response(request)

    return watch


def no_store(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Lets neither browsers nor proxies keep an answer, whoever asked; static files are answered before this."""

    def forbid(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["Cache-Control"] = "no-store"
        return response

    return forbid


def follow(request: HttpRequest, *, used: bool) -> None:
    """Ends the session or notes its use; what an open page fetches by itself keeps nobody logged in."""
    login = Login.objects.of(request)
    if why := login.why_over():
        logout(request)
        login.delete()
        messages.info(request, why)
    elif used:
        login.note(request.META.get("REMOTE_ADDR", ""))
