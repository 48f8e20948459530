"""Addresses of the migrations and their approvals."""

from django.urls import include, path

from jobs.web import approvals, backups, base, leftovers, migrations, overview

jobs = (
    [
        path("migrations/", migrations.history, name="list"),
        path("migrations/export.csv", migrations.export, name="export"),
        path("migrations/new", migrations.new, name="new"),
        path("migrations/<int:number>/", migrations.job, name="job"),
        path("migrations/<int:number>/plan", migrations.plan, name="plan"),
        path("migrations/<int:number>/evidence.zip", migrations.evidence, name="evidence"),
        path("migrations/<int:number>/extend", backups.extend, name="extend"),
        path("migrations/<int:number>/<slug:verb>", migrations.verb, name="verb"),
        path("leftovers/", leftovers.leftovers, name="leftovers"),
        path("leftovers/scan", leftovers.scan, name="scan"),
        path("leftovers/<int:pk>/<slug:verb>", leftovers.leftover, name="leftover"),
        path("backups/", backups.backups, name="backups"),
        path("attention/count", base.attention_count, name="attention"),
        path("approvals/", approvals.approvals, name="approvals"),
        path("approvals/count", approvals.count, name="count"),
        path("approvals/<int:pk>/", approvals.approval, name="approval"),
    ],
    "jobs",
)
urlpatterns = [path("", overview.overview, name="overview"), path("", include(jobs))]
