# nova-compute with libvirt, from the file system of tools at $tools; qemu runs as $user.
set -e
mkdir -p "$tools" /var/lib/nova/instances /var/log/lab /var/log/nova
findmnt -n "$tools" >/dev/null || mount -o ro /dev/ubdc "$tools"
chown nova: /var/lib/nova /var/log/nova
findmnt -n /var/lib/nova/instances >/dev/null || chown nova: /var/lib/nova/instances
usermod -aG libvirt,disk,kvm nova
sed -i "s/^user = .*/user = \"$user\"/; s/^group = .*/group = \"$user\"/" /etc/libvirt/qemu.conf
printf 'unix_sock_group = "libvirt"\nunix_sock_rw_perms = "0770"\nauth_unix_rw = "none"\n' >/etc/libvirt/libvirtd.conf
systemctl -q enable libvirtd.service
systemctl restart libvirtd.service
systemctl -q stop nova-compute 2>/dev/null || true
systemctl reset-failed nova-compute 2>/dev/null || true
systemd-run -q --unit=nova-compute --uid=nova -p StandardOutput=append:/var/log/nova/compute.log -p StandardError=append:/var/log/nova/compute.log \
  -E PYTHONPATH="$tools/site:$tools/libvirt" -E HOME=/var/lib/nova \
  /usr/bin/python3 /etc/nova/nova_service.py compute --config-file /etc/nova/nova.conf --config-file /etc/nova/real.conf
