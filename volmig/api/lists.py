"""Pages of long lists: where one begins, and the address of what follows."""

from typing import Annotated, Any

from django.http import HttpRequest
from ninja import Query, Schema

from volmig.api.schemas import Number

MOST = 200  # rows of a page


class Edge(Schema):
    """Where a page of a list begins: after this one, or before it."""

    after: Number | None = None
    before: Number | None = None
    limit: Annotated[int, Query(ge=1, le=MOST)] = 50


def following(request: HttpRequest, found: Any) -> str | None:
    """The address of the next page; None on the last one."""
    return f"{request.path}?{found.later}" if found.later else None
