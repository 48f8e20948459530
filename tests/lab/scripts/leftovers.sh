# Print one line for everything that volmig has left on this guest.
lvs --noheadings --separator ' ' -o vg_name,lv_name,lv_tags 2>/dev/null | awk '$2 ~ /^volmig/ || $3 ~ /volmig/ {print "lv " $1 "/" $2 " tags " $3}'
lvs --noheadings --separator ' ' -o vg_name,lv_name,lv_permissions 2>/dev/null | awk '$3 ~ /read-only/ {print "fence " $1 "/" $2}'
dmsetup ls 2>/dev/null | awk '$1 ~ /volmig/ && $1 !~ /^vg_nova0/ {print "device " $1}'
findmnt -rno TARGET | awk '/volmig/ {print "mount " $1}'
exportfs -v 2>/dev/null | awk '/volmig/ {print "export " $1}'
systemctl list-units --all --plain --no-legend 'volmig*' | awk '{print "unit " $1 " " $3}'
for entry in /srv/volmig/* /mnt/volmig/* /var/lib/volmig/* /run/volmig/* /etc/exports.d/*; do
  case $entry in
    */\* | /var/lib/volmig/bin | /var/lib/volmig/forgotten | /var/lib/volmig/owner.json | /var/lib/volmig/owner.json.lock) ;;
    *) echo "path $entry" ;;
  esac
done
if [ -d /vol/nova/.volmig ]; then
  find /vol/nova/.volmig -mindepth 1 \( -not -type d -o -empty \) -printf 'share %P\n'
fi
exit 0
