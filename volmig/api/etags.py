"""Whether what was read still holds: ETags, If-Match and If-None-Match."""

import hashlib
import json
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified
from ninja import Schema

from volmig.api.problems import Stop
from volmig.refusals import Sentence

CHANGED = Sentence("changed-meanwhile", "It has changed since you read it. Nothing was changed; read it again.")
NO_MATCH = Sentence("no-if-match", "Send If-Match with the ETag of the state that you want to change.")


def tag(shape: Schema) -> str:
    """The ETag of a document: another one as soon as anything in it is another."""
    plain = json.dumps(shape.model_dump(), cls=DjangoJSONEncoder, sort_keys=True)
    return f'"{hashlib.sha256(plain.encode()).hexdigest()[:32]}"'


def named(request: HttpRequest, header: str) -> list[str]:
    """The ETags in a header, weak ones as strong (RFC 9110, 8.8.3)."""
    return [each.strip().removeprefix("W/") for each in request.headers.get(header, "").split(",") if each.strip()]


def tagged(request: HttpRequest, response: HttpResponse, shape: Any) -> Any:
    """The document with its ETag, or 304 for whoever has it."""
    mine = tag(shape)
    if request.method == "GET" and mine in named(request, "If-None-Match"):
        return HttpResponseNotModified(headers={"ETag": mine})
    response["ETag"] = mine
    return shape


def match(request: HttpRequest, shape: Schema, *, needed: bool = False) -> None:
    """Go on only when the document is the one that the request names with If-Match."""
    wanted = named(request, "If-Match")
    if not wanted and needed:
        raise Stop(428, NO_MATCH)
    if wanted and "*" not in wanted and tag(shape) not in wanted:
        raise Stop(412, CHANGED)
