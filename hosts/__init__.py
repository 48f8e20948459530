"""Hypervisors, what was last seen on them, and the way to reach them."""
