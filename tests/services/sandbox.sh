# A command of the Hermes image as an agent would run it, and nothing else within its reach:
#   sandbox.sh ROOT STATE CONFIG UID MODEL-COMMAND COMMAND...
# An empty network with the scripted model in it (MODEL-COMMAND is a shell command that runs it), ROOT read-only,
# STATE writable as /mnt, CONFIG read-only as /mnt/config.yaml, a /tmp, the uid UID, no capability.
# Takes root; everything that it makes is gone when it ends.
root=$1 state=$2 config=$3 uid=$4 model=$5
shift 5
export root state config uid model
exec unshare --mount --net --pid --fork --ipc --uts --kill-child --propagation private bash -euc '
  ip link set lo up
  coproc model { exec sh -c "exec $model"; }
  read -r _ <&"${model[0]}" # it listens
  mount --bind "$root" "$root"
  mount -o remount,bind,ro,nosuid,nodev "$root"
  mount -t proc proc "$root/proc"
  mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  for device in null zero full random urandom; do
    : > "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
  done
  mount --bind "$state" "$root/mnt"
  mount --bind "$config" "$root/mnt/config.yaml"
  mount -o remount,bind,ro "$root/mnt/config.yaml"
  cd /
  chroot "$root" setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
    env -i --chdir=/mnt PATH=/usr/local/bin:/usr/bin:/usr/sbin LANG=C.UTF-8 HOME=/mnt HERMES_HOME=/mnt USER=hermes "$@"
' sandbox "$@"
