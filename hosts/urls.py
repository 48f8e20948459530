"""Addresses of hypervisors, clouds, instances and teams."""

from django.urls import include, path

from hosts import team_views, views

hosts = (
    [
        path("", views.overview, name="list"),
        path("register/", views.register, name="register"),
        path("clouds/", views.clouds, name="clouds"),
        path("clouds/add/", views.cloud, name="add_cloud"),
        path("clouds/<int:pk>/", views.cloud, name="cloud"),
        path("clouds/<int:pk>/nova/", views.nova, name="nova"),
        path("clouds/<int:pk>/check/", views.look_at_cloud, {"what": "check"}, name="check_cloud"),
        path("clouds/<int:pk>/refresh/", views.look_at_cloud, {"what": "refresh"}, name="refresh_cloud"),
        path("hostctl", views.bundle, name="bundle"),
        path("<int:pk>/", views.hypervisor, name="hypervisor"),
        path("<int:pk>/edit/", views.edit, name="edit"),
        path("<int:pk>/pin/", views.pin, name="pin"),
        path("<int:pk>/offer/", views.offer, name="offer"),
        path("<int:pk>/refresh/", views.refresh, name="refresh"),
        path("<int:pk>/policy/", views.policy, name="policy"),
        path("<int:pk>/seal-key/", views.seal_key, name="seal_key"),
        path("<int:pk>/retire/", views.retire, name="retire"),
    ],
    "hosts",
)
urlpatterns = [
    path("hosts/", include(hosts)),
    path("instances/", views.instances, name="instances"),
    path("instances/<uuid:uuid>/", views.instance, name="instance"),
    path("teams/", team_views.teams, name="teams"),
    path("teams/add/", team_views.team, name="add_team"),
    path("teams/<int:pk>/", team_views.team, name="team"),
    path("teams/<int:pk>/remove/", team_views.remove_team, name="remove_team"),
]
