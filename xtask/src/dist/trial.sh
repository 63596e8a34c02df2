# Runs in a root that holds the program, busybox and a layout of one image: no C library, no /dev but what is made here.
set -e
serving=
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
umount -l /old
for device in null:1:3 zero:1:5 full:1:7 tty:5:0; do
    IFS=: read -r name major minor <<EOF
$device
EOF
    mknod -m 666 "/dev/$name" c "$major" "$minor"
done

# $1: whose it is; then the arguments.
lap() {
    user=$1
    shift
    mkdir -p "/state/$user"
    chown "$user:$user" "/state/$user"
    set -- /bin/lapstrake --root "/state/$user" --config /etc/lapstrake.toml "$@"
    case $user in
    0) "$@" ;;
    # No word of these has a blank.
    *) su -s /bin/sh -c "$*" user ;;
    esac
}

for user in 0 1000; do
    echo "as user $user: its version"
    lap $user --version
    echo "as user $user: a build without /dev/urandom"
    lap $user build -q -t files -f /app/Dockerfile.files /app
done
mknod -m 666 /dev/random c 1 8
mknod -m 666 /dev/urandom c 1 9
for user in 0 1000; do
    echo "as user $user: a build on a base image"
    lap $user build --progress=plain -t "made-$user" /app
    test "$(lap $user run --rm "made-$user" cat /made)" = made
done
trap 'test -z "$serving" || kill $serving' EXIT
echo "a pull over the loopback by the name localhost"
/bin/lapstrake --root /state/0 --config /etc/lapstrake.toml registry serve --listen 127.0.0.1:0 >/tmp/serving &
serving=$!
while ! grep -q http:// /tmp/serving; do
    kill -0 $serving
    sleep 0.02
done
address=$(sed -n 's|.* at http://127.0.0.1:\([0-9]*\),.*|localhost:\1|p' /tmp/serving)
lap 1000 pull -q "$address/made-0"
test "$(lap 1000 run --rm "$address/made-0" cat /made)" = made
