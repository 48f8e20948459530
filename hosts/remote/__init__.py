"""The way to hypervisors, without Django."""
