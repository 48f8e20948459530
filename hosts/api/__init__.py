"""The API of hypervisors, shares, clouds and instances."""
