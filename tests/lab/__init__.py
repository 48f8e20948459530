"""The storage lab: four real hypervisors and filers in User-mode Linux guests; see lab.py."""
