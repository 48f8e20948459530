# Lay out the filer once: a real file system on LVM, owned by nova, exported to the storage VLAN.
set -e
[ -e /dev/vg_export/nova ] && exit
pvcreate -qy /dev/ubdb
vgcreate -q vg_export /dev/ubdb
lvcreate -qy -l 100%FREE -n nova vg_export
mkfs.xfs -q /dev/vg_export/nova
echo '/dev/vg_export/nova /vol/nova xfs defaults 0 0' >/etc/fstab
mount /vol/nova
chown nova:nova /vol/nova
systemctl -q daemon-reload
systemctl -q enable nfs-server
sync
