"""Addresses that take a form and show nothing by themselves: they belong to a page."""

from collections.abc import Callable, Container
from functools import wraps
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponseNotAllowed, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import reverse

View = Callable[..., HttpResponseBase]
SAFE = ("GET", "HEAD")
SAID = "Nothing was changed: use the button on this page, which sends the required request."


def posted_from(page: str, *parameters: str, verbs: Container[str] = ()) -> Callable[[View], View]:
    """Makes a view that is only posted to. Whoever opens its address, by a bookmark, from the history of the browser or
    after a login, is led to the page where the form is, and nothing is changed.

    `page` is the name of that page's address, `parameters` are those of the view that it takes, too. `verbs` are those
    of a view that has several buttons: an address with another one is none (404).
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if verbs and kwargs["verb"] not in verbs:
                raise Http404
            if request.method in SAFE:
                messages.info(request, SAID)
                return HttpResponseRedirect(reverse(page, kwargs={name: kwargs[name] for name in parameters}))
            if request.method != "POST":
                return HttpResponseNotAllowed(["POST"])
            return view(request, *args, **kwargs)

        return guarded

    return decorate
