# On the filer: the files of instance $uuid, as Nova keeps them; its data disk of $size bytes holds /data.
set -e
work=$(mktemp -d /var/tmp/lab-instance.XXXXXX)
folder=/vol/nova/$uuid
mkdir -p "$work/content" "$folder"
mv /var/tmp/lab-data "$work/content/data"
truncate -s "$size" "$work/raw"
mkfs.ext4 -q -F -d "$work/content" "$work/raw"
qemu-img convert -f raw -O qcow2 "$work/raw" "$folder/disk.local"
qemu-img create -q -f qcow2 "$folder/disk" 64M
echo "{\"$instances/$uuid/disk\": \"qcow2\", \"$instances/$uuid/disk.local\": \"qcow2\"}" >"$folder/disk.info"
chown -R nova:nova "$folder"
rm -rf "$work"
