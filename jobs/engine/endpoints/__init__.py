"""Where a disk is read from and where it is put: one module for each kind, as a source, a destination, or both."""
