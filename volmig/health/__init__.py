"""Whether volmig itself is well: heartbeats of its processes, readiness, and figures for Prometheus."""
