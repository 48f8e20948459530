# The volume group that Nova keeps local disks in.
set -e
vgs vg_nova0 >/dev/null 2>&1 && exit
pvcreate -qy /dev/ubdb
vgcreate -q vg_nova0 /dev/ubdb
sync
