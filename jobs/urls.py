"""Addresses of the migrations and their approvals."""

from django.urls import include, path

from jobs.web import views

jobs = (
    [
        path("migrations/", views.history, name="list"),
        path("migrations/export.csv", views.export, name="export"),
        path("migrations/new", views.new, name="new"),
        path("migrations/<int:number>/", views.job, name="job"),
        path("migrations/<int:number>/plan", views.plan, name="plan"),
        path("migrations/<int:number>/evidence.zip", views.evidence, name="evidence"),
        path("migrations/<int:number>/extend", views.extend, name="extend"),
        path("migrations/<int:number>/<slug:verb>", views.verb, name="verb"),
        path("leftovers/", views.leftovers, name="leftovers"),
        path("leftovers/scan", views.scan, name="scan"),
        path("leftovers/<int:pk>/<slug:verb>", views.leftover, name="leftover"),
        path("backups/", views.backups, name="backups"),
        path("attention/count", views.attention_count, name="attention"),
        path("approvals/", views.approvals, name="approvals"),
        path("approvals/count", views.count, name="count"),
        path("approvals/<int:pk>/", views.approval, name="approval"),
    ],
    "jobs",
)
urlpatterns = [path("", views.overview, name="overview"), path("", include(jobs))]
