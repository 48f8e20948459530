"""volmig: moves an instance's data disk between hypervisors that keep disks differently."""
