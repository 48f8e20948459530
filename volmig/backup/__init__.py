"""Backup of volmig itself: database, keys, audit heads and settings in one archive, and the way back from it."""
