"""hostctl: volmig's one small program on each hypervisor, standard library of Python 3.6 and later only."""

from .act import Act
from .verbs import acts
from .version import OLDEST, PROTOCOL, source_hash

__all__ = ["OLDEST", "PROTOCOL", "Act", "acts", "source_hash"]
