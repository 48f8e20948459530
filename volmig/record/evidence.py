"""The page that says how to verify evidence, and what is needed for it: public keys, published heads, the verifier."""

import io
import json
from pathlib import Path

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from volmig import verify_evidence
from volmig.accounts.roles import needs
from volmig.record import heads, signing
from volmig.record.models import Publisher

PYTHON = "text/x-python; charset=utf-8"


@require_GET
@needs("view")
def page(request: HttpRequest) -> HttpResponse:
    """The public keys, the newest head, and how to verify an archive."""
    keys, error, last = [], "", None
    publisher = Publisher.current()
    try:
        keys = signing.published()["keys"]
        last = heads.newest(Path(settings.AUDIT_HEADS))
    except (OSError, ValueError) as failure:
        error = str(failure)
    shown = {"keys": keys, "error": error, "last": last, "publisher": publisher, "elsewhere": heads.elsewhere()}
    return render(request, "record/evidence.html", shown)


@require_GET
@login_not_required
def keys(request: HttpRequest) -> HttpResponse:
    """keys.json, for anyone: nothing in it is secret."""
    body = json.dumps(signing.published(), indent=1) + "\n"
    headers = {"Content-Disposition": 'attachment; filename="keys.json"'}
    return HttpResponse(body, content_type="application/json", headers=headers)


@require_GET
@login_not_required
def verifier(request: HttpRequest) -> FileResponse:
    """The verifier as one file, for anyone."""
    file = io.BytesIO(Path(verify_evidence.__file__).read_bytes())
    return FileResponse(file, as_attachment=True, filename="verify_evidence.py", content_type=PYTHON)


@require_GET
@needs("audit")
def published_heads(request: HttpRequest) -> FileResponse:
    """The file of heads as it is; to be kept on another machine."""
    return heads_file()


def heads_file() -> FileResponse:
    """The heads as they are on disk; empty as long as none was published. Raises Http404 where another machine has
    them and this one no copy."""
    if why := heads.elsewhere():
        raise Http404(why)
    path, kind = Path(settings.AUDIT_HEADS), "application/x-ndjson"
    file = path.open("rb") if path.exists() else io.BytesIO()  # the response closes it
    return FileResponse(file, as_attachment=True, filename="volmig-audit-heads.jsonl", content_type=kind)
