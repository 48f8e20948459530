"""A real OpenStack control plane on loopback for the tests; see plane.py."""
