# Return this guest to what it was after furnishing; run on all but the filer first, then on the filer.
fail() { echo "reset: $*" >&2; exit 1; }
mounts() { findmnt -rno TARGET | grep -E '^/(srv|mnt)/volmig|^/run/lab-volume' | sort -r; }
units() { systemctl list-units --all --plain --no-legend 'volmig*' | awk '{print $1}'; }
ours() { lvs --noheadings --separator / -o vg_name,lv_name vg_nova0 2>/dev/null | tr -d ' '; }

for card in /sys/class/net/eth*; do tc qdisc del dev "${card##*/}" root 2>/dev/null; done

# Killed before their mounts go: a unit that waits for a dead NFS server ends only by SIGKILL.
if [ -n "$(units)" ]; then
  systemctl kill -s KILL $(units) 2>/dev/null
  timeout 30 systemctl stop $(units) 2>/dev/null
  systemctl reset-failed $(units) 2>/dev/null
fi

if [ "$role" = hypervisor ]; then
  for domain in $(virsh list --all --name); do
    virsh -q destroy "$domain" >/dev/null 2>&1
    virsh -q undefine "$domain" >/dev/null || fail "cannot undefine $domain"
  done
  rm -f /var/log/lab/*
fi

if [ "$role" != filer ]; then
  rm -f /etc/exports.d/volmig-*
  if [ -s /var/lib/nfs/etab ]; then exportfs -ua; exportfs -f; fi
  if systemctl -q is-active nfs-server; then systemctl stop nfs-server; fi
fi
# The server of a hard mount may be gone by now (jump is reset at the same time): then umount ends only by SIGKILL.
# A file system on a volume is busy until the NFS server has let go of it, and must not be unmounted lazily: its
# volume could not be removed.
for target in $(mounts); do
  case $(findmnt -rno FSTYPE "$target") in
    nfs*) timeout -s KILL 5 umount "$target" 2>/dev/null || umount -i -f -l "$target" ;;
    *) timeout 20 sh -c "until umount '$target' 2>/dev/null; do sleep 0.2; done" ;;
  esac
done
[ -z "$(mounts)" ] || fail "still mounted: $(mounts)"
rm -rf --one-file-system /srv/volmig /mnt/volmig /var/lib/volmig /run/volmig
for fill in $(find / /vol/nova -xdev -name .lab-fill -maxdepth 4 2>/dev/null); do rm -f "$fill"; done

# Discarding gives the machine its disk space back, and the next test extents that read as zeros.
for volume in $(ours); do
  lvremove -qfy --config devices/issue_discards=1 "$volume" >/dev/null 2>&1 && continue
  fuser -km "/dev/$volume" 2>/dev/null
  sleep 0.2
  lvremove -qfy --config devices/issue_discards=1 "$volume" >/dev/null || fail "cannot remove $volume"
done

if [ "$role" = filer ]; then find /vol/nova -mindepth 1 -delete; fi
exit 0
