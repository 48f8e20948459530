"""Addresses of migrations, approvals and policies, and of what tells how volmig itself is."""

from django.urls import include, path

from jobs.web import adoption, approvals, backups, base, health, leftovers, migrations, overview, policies

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
urlpatterns = [
    path("", overview.overview, name="overview"),
    path("", include(jobs)),
    path("checks/", migrations.checks, name="checks"),
    path("teams/<int:pk>/policies/add/", policies.policy, name="add_policy"),
    path("teams/<int:pk>/policies/<int:policy>/", policies.policy, name="policy"),
    path("teams/<int:pk>/policies/<int:policy>/remove/", policies.remove_policy, name="remove_policy"),
    path("adopt/", adoption.adopt, name="adopt"),
    path("adopt/<slug:verb>/", adoption.adopt_verb, name="adopt_verb"),
    path("healthz", health.health, name="health"),
    path("healthz/live", health.live, name="health_live"),
    path("healthz/ready", health.readiness, name="health_ready"),
    path("metrics", health.figures, name="metrics"),
    path("processes/", health.processes, name="processes"),
]
