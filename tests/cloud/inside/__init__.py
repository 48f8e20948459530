"""What runs in the control plane's own Python environment, beside OpenStack."""
