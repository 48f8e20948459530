# libvirt on the destination.
set -e
mkdir -p /var/log/lab
chown nova: /var/log/lab
systemctl -q enable --now libvirtd.service
