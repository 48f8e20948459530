"""Benchmarks on the lab; `make bench` prints them. Nothing else asserts on time."""
