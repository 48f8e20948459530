#!/usr/bin/env python3
"""Entry point of the server's commands."""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "volmig.settings")
    execute_from_command_line(sys.argv)
