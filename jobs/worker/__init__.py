"""What workers and the watcher run: ticks, steps on hypervisors, and what is kept of them."""
