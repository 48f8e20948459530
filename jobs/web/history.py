"""The history of migrations: which ones are wanted, in which order, and as a file."""

import datetime as dt
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from asgiref.sync import sync_to_async
from django import forms
from django.db.models import BigAutoField, Lookup, OuterRef, Q, Subquery
from django.utils import timezone

from hosts.models import Hypervisor
from jobs.engine import states
from jobs.models import Job, Word, search
from jobs.models.job import JobQuerySet
from volmig.paging import whole
from volmig.record.export import cells

STATUS_WORDS = [(name, name.replace("_", " ")) for name in states.STATUSES]
ORDERS = {
    "newest": ("-pk", "newest first"),
    "oldest": ("pk", "oldest first"),
    "name": ("instance_name", "instance, A to Z"),
    "name-down": ("-instance_name", "instance, Z to A"),
    "largest": ("-source_size", "largest first"),
    "smallest": ("source_size", "smallest first"),
    "ended": ("-ended_at", "last ended first"),
}
MANY = 8000  # migrations with a word, from which on it is quicker to ask each in turn than to fetch the keys of all
SLACK = 1000  # numbers are given and times are noted in almost the same order; many at once may differ by so much
NONE = 1 << 62  # a number that no migration has
CHUNK = 1000
COLUMNS = {
    "number": "pk", "status": "status", "outcome": "outcome", "halted": "halt_reason", "ticket": "ticket",
    "requester": "requester__username", "requested_at": "created_at", "ended_at": "ended_at",
    "instance": "instance_name", "instance_id": "instance_id", "disk": "disk", "bytes": "source_size",
    "source": "source__name", "volume_group": "source_vg", "logical_volume": "source_lv", "lv_uuid": "lv_uuid",
    "relay": "relay__name", "destination": "destination__name", "share": "share_source", "why": "outcome_reason",
}  # fmt: skip


class SearchForm(forms.Form):
    """Filters of the history; all of them live in the address."""

    q = forms.CharField(
        label="Instance, volume, ticket or number",
        required=False,
        max_length=200,
        widget=forms.TextInput(attrs={"placeholder": "a word from its beginning"}),
    )
    host = forms.ModelChoiceField(
        Hypervisor.objects.order_by("name"), label="Hypervisor", required=False, empty_label="any"
    )
    person = forms.CharField(label="Person", required=False, max_length=150)
    status = forms.ChoiceField(
        label="State",
        required=False,
        choices=[("", "any"), ("active", "active"), ("halted", "halted"), ("failed", "failed"), *STATUS_WORDS],
    )
    since = forms.DateField(label="Requested from", required=False, widget=forms.DateInput(attrs={"type": "date"}))
    until = forms.DateField(label="until", required=False, widget=forms.DateInput(attrs={"type": "date"}))
    sort = forms.ChoiceField(
        label="Order", required=False, choices=[(name, words) for name, (_, words) in ORDERS.items()]
    )

    def __init__(self, user: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["host"].queryset = Hypervisor.objects.visible_to(user).defer("facts")  # type: ignore[attr-defined]
        for name, shown in self.fields.items():
            shown.widget.attrs["class"] = "form-select" if name in ("host", "status", "sort") else "form-control"

    @property
    def order(self) -> str:
        """The column to sort by, as a QuerySet takes it."""
        return ORDERS[self.cleaned_data.get("sort") or "newest"][0] if self.is_valid() else "-pk"

    def wanted(self) -> dict[str, str]:
        """The filters that are filled in, for the audit log."""
        return {name: str(value) for name, value in self.cleaned_data.items() if value and name != "sort"}


@BigAutoField.register_lookup
class Among(Lookup):
    """`pk__among=[…]`: thousands of keys as one parameter, where IN would take one for each."""

    lookup_name = "among"
    prepare_rhs = False

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:  # type: ignore[override]
        """The keys as one parameter of JSON: SQLite takes only so many parameters."""
        column, params = self.process_lhs(compiler, connection)
        among = f"{column} IN (SELECT value FROM json_each(%s))"  # noqa: S608 - the column's own name
        return among, [*params, json.dumps(self.rhs)]

    def as_postgresql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        """The keys as one array."""
        column, params = self.process_lhs(compiler, connection)
        return f"{column} = ANY(%s::bigint[])", [*params, self.rhs]


def narrowed(rows: JobQuerySet, form: SearchForm) -> JobQuerySet:
    """Those that fit the filters; none when a filter cannot be understood."""
    if not form.is_valid():
        return rows.none()
    wanted = form.cleaned_data
    numbers = numbers_of(wanted["since"], wanted["until"])
    rows = rows.filter(**on_days(wanted["since"], wanted["until"]), **bounds("pk", numbers))
    if text := wanted["q"].strip():
        rows = rows.filter(remembered(text, numbers))
    # By keys from the index of words: joined with it, a database would sort all the rows before it gave the first ones.
    if wanted["host"]:
        rows = rows.filter(pk__in=Word.objects.exactly(search.host(wanted["host"].pk)).values("job"))
    if wanted["person"]:
        rows = rows.filter(pk__in=Word.objects.exactly(search.person(wanted["person"])).values("job"))
    if form.order == "-ended_at":
        rows = rows.filter(ended_at__isnull=False)
    return in_state(rows, wanted["status"])


def remembered(text: str, numbers: Mapping[str, int]) -> Q:
    """By its number, or by a word that begins like this, among migrations with these `numbers`."""
    found, number = Word.objects.beginning(text), whole(text)
    keys = list(found.filter(**bounds("job", numbers)).values_list("job", flat=True)[: MANY + 1])
    if len(keys) <= MANY:  # each is fetched by its key
        return Q(pk__among=[*keys, *([number] if number else [])])
    # Where many fit, each migration is asked in turn, and a page is soon full. As an equation: PostgreSQL would make
    # a join of an EXISTS, and read all that fit before it gave the first ones.
    match = Q(pk=Subquery(found.filter(job=OuterRef("pk")).values("job")[:1]))
    return match | Q(pk=number) if number else match


def on_days(first: dt.date | None, last: dt.date | None) -> dict[str, dt.datetime]:
    """The filter for those asked for on these days, both included."""
    began = {"created_at__gte": midnight(first)} if first else {}
    return began | ({"created_at__lt": midnight(last + dt.timedelta(days=1))} if last else {})


def numbers_of(first: dt.date | None, last: dt.date | None) -> dict[str, int]:
    """Between which numbers those asked for on these days are, for rows are read in the order of their numbers."""
    found = {}
    if first:
        earliest = (
            Job.objects.filter(**on_days(first, None)).order_by("created_at").values_list("pk", flat=True).first()
        )
        found["gte"] = earliest - SLACK if earliest else NONE
    if last:
        latest = Job.objects.filter(**on_days(None, last)).order_by("-created_at").values_list("pk", flat=True).first()
        found["lte"] = latest + SLACK if latest else -NONE
    return found


def bounds(column: str, numbers: Mapping[str, int]) -> dict[str, int]:
    """Lookups on a column from lower and upper bounds."""
    return {f"{column}__{side}": number for side, number in numbers.items()}


def midnight(day: dt.date) -> dt.datetime:
    """The begin of a day in the site's time zone."""
    return timezone.make_aware(dt.datetime.combine(day, dt.time()))


def in_state(rows: JobQuerySet, status: str) -> JobQuerySet:
    """Apply the filter of the state, which knows a few words more than the statuses."""
    if status == "active":
        return rows.filter(status__in=sorted(states.ACTIVE))
    if status == "halted":
        return rows.exclude(halt_reason="")
    if status == "failed":
        return rows.filter(outcome="failed")
    return rows.filter(status=status) if status else rows


async def stream(rows: JobQuerySet) -> AsyncIterator[str]:
    """The rows as CSV, newest first; each chunk is a query of its own, so no transaction lasts a download."""
    yield cells(COLUMNS)
    last: int | None = None
    while found := await sync_to_async(chunk)(rows, last):
        yield "".join(cells(map(told, row)) for row in found)
        last = found[-1][0]


def chunk(rows: JobQuerySet, below: int | None) -> list[tuple[Any, ...]]:
    """The next rows of an export, newest first."""
    rest = rows if below is None else rows.filter(pk__lt=below)
    return list(rest.order_by("-pk").values_list(*COLUMNS.values())[:CHUNK])


def told(value: Any) -> Any:
    """A cell of the export; times in UTC."""
    return value.astimezone(dt.UTC).isoformat(timespec="seconds") if isinstance(value, dt.datetime) else value
