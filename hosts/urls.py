"""Addresses of the hypervisor pages."""

app_name = "hosts"
urlpatterns: list[object] = []
