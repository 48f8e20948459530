# (Re)mount the share with $options, now and on later boots. A fresh mount also forgets every cached name.
set -e
line="$source /var/lib/nova/instances nfs $options,_netdev,nofail,x-systemd.mount-timeout=60 0 0"
if [ "$(cat /etc/fstab)" != "$line" ]; then
  echo "$line" >/etc/fstab
  sync
fi
if mountpoint -q /var/lib/nova/instances; then
  umount /var/lib/nova/instances 2>/dev/null || umount -f -l /var/lib/nova/instances
fi
mount /var/lib/nova/instances
