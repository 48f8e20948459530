# Export the share with $squash (root_squash or no_root_squash); clients keep their mounts.
set -e
echo "/vol/nova 10.77.2.0/24(rw,sync,no_subtree_check,$squash)" >/etc/exports
systemctl start nfs-server
exportfs -ra
exportfs -f
