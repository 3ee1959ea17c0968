# Builds a root of its own in this mount namespace, like a small container's, and becomes the command in it.
# Arguments: an empty directory, one for /etc/bao, the binary under test, `fuse` or `no-fuse`, more preparation (shell), the
# command.
set -e
root=$1 credentials=$2 binary=$3 fuse=$4 prepare=$5
shift 5
mount -t tmpfs -o mode=0755 room "$root"
for entry in /*; do
  name=${entry#/}
  if [ -L "$entry" ]; then cp -a "$entry" "$root/$name"; continue; fi
  [ -d "$entry" ] || continue
  mkdir -p "$root/$name"
  case $name in
    proc | dev | tmp | app | etc | run | var | entry | lost+found) ;;
    *) mount --rbind "$entry" "$root/$name" ;;
  esac
done
mkdir -p "$root"/dev/shm "$root"/proc "$root"/tmp "$root"/run "$root"/var "$root"/etc "$root"/app/secrets "$root"/entry "$root"/old
chmod 1777 "$root/tmp"
ln -s /run "$root/var/run"
cp -a /etc/. "$root/etc/"
rm -rf "$root/etc/bao"
mkdir "$root/etc/bao"
mount --bind "$credentials" "$root/etc/bao"
touch "$root/entry/${binary##*/}"
mount --bind "$binary" "$root/entry/${binary##*/}"
devices="null zero full random urandom tty"
[ "$fuse" = no-fuse ] || devices="$devices fuse"
for device in $devices; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t proc proc "$root/proc"
cd "$root"
pivot_root . old
umount -l /old
rmdir /old
cd /
eval "$prepare"
exec "$@"
