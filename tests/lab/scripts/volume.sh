# Make the logical volume $name of $size bytes with an ext4 that holds /data, $data MiB of random bytes, and print
# its SHA-256; /bulk holds $bulk MiB more that nobody hashes.
set -e
device=/dev/vg_nova0/$name
lvcreate -qy -Wy -L "${size}b" -n "$name" vg_nova0 >&2
mkfs.ext4 -q -F "$device"
mkdir -p /run/lab-volume
mount "$device" /run/lab-volume
dd if=/dev/urandom of=/run/lab-volume/data bs=1M count="$data" status=none
dd if=/dev/urandom of=/run/lab-volume/bulk bs=1M count="$bulk" status=none
sha256sum /run/lab-volume/data | cut -d' ' -f1
umount /run/lab-volume
rmdir /run/lab-volume
udevadm settle
