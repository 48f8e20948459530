"""The settings under test, in a data directory of their own."""

import atexit
import os
import shutil
import tempfile

# Before the settings are read: tests never touch the data of a volmig that runs from this clone, nor each other's.
# In memory where there is room: SQLite waits for the disk at the end of each transaction, and a test that needs
# a file system of a certain kind makes its own directory.
MEMORY = "/dev/shm"
ROOM = 1 << 30  # bytes; a container's default is 64 MiB
in_memory = os.path.isdir(MEMORY) and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
directory = tempfile.mkdtemp(prefix="volmig-test-", dir=MEMORY if in_memory else None)
atexit.register(shutil.rmtree, directory, ignore_errors=True)
os.environ["VOLMIG_DATA"] = directory
os.environ.setdefault("VOLMIG_ALLOWED_HOSTS", "127.0.0.1,localhost,testserver")
os.environ["DJANGO_SETTINGS_MODULE"] = "volmig.settings"  # for programs that tests start: they run as users run them

from volmig import data_dir  # noqa: E402

for name in (*data_dir.OWNERS, data_dir.AUDIT_KEY):  # as after a first start: most tests are not about that
    data_dir.make(name)

from volmig.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # a second saved for each person
