"""volmig: moves an instance's data disk between hypervisors that keep disks differently."""

__version__ = "0.1.0"
