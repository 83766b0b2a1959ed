#!/usr/bin/env bash
# A real S3 server for tests: Ceph's RADOS Gateway with one monitor and one OSD, on loopback only.
#
#   tests/ceph_rgw.sh install                  Debian's packages; needs root, once a machine
#   tests/ceph_rgw.sh start DIR PORT           a new cluster in DIR, or the one that is there
#   tests/ceph_rgw.sh kill-gateway DIR PORT    kill -9 of the gateway alone; start brings it back
#   tests/ceph_rgw.sh stop DIR PORT            end all three processes
#
# S3 at http://127.0.0.1:PORT, key testkey, secret testsecret. The monitor takes PORT+1 and PORT+2.
# DIR holds everything, among it a sparse file of 12 GB; nothing outside it is written.
set -euo pipefail
command=${1:?install, start, kill-gateway or stop}

if [ "$command" = install ]; then
  missing=no
  for program in radosgw ceph-mon ceph-osd ceph curl; do
    command -v $program >/dev/null || missing=yes
  done
  [ $missing = yes ] || exit 0
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # Packages must not start services of their own.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
  fi
  apt-get install -y -qq --no-install-recommends ceph-mon ceph-osd radosgw ceph-common curl >/dev/null
  exit 0
fi

dir=${2:?folder} port=${3:?port}
conf=$dir/ceph.conf
export CEPH_CONF=$conf

alive() { # a zombie is not
  [ -f "$dir/$1.pid" ] && grep -qs '^State:.[^ZX]' "/proc/$(cat "$dir/$1.pid")/status"
}

launch() { # NAME PROGRAM...: in the background, unless it runs
  local name=$1
  shift
  alive "$name" && return
  setsid nohup "$@" >>"$dir/$name.log" 2>&1 </dev/null &
  echo $! >"$dir/$name.pid"
}

wait_for() { # SECONDS COMMAND...: until it succeeds
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "gave up waiting for: $*" >&2; exit 1; }
    sleep 0.3
  done
}

new_cluster() {
  mkdir -p "$dir"/{mon,osd,rgw,run}
  cat >"$conf" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$((port + 1))/0,v1:127.0.0.1:$((port + 2))/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
keyring = $dir/keyring
run dir = $dir/run
admin socket = $dir/run/\$name.asok
log file = $dir/\$name.ceph.log
crash dir = $dir/run
pid file =
setuser match path =
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
mon data avail warn = 2
mon max pg per osd = 1000
mon initial members = a
[mon.a]
mon data = $dir/mon
[osd.0]
osd data = $dir/osd
osd objectstore = bluestore
bluestore block create = true
bluestore block size = 12000000000
osd memory target = 939524096
[client.rgw]
rgw data = $dir/rgw
rgw frontends = beast endpoint=127.0.0.1:$port
rgw thread pool size = 64
CONF
  local caps=(--cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *')
  ceph-authtool -C "$dir/keyring" --gen-key -n mon. --cap mon 'allow *'
  for name in client.admin osd.0 client.rgw; do
    ceph-authtool "$dir/keyring" --gen-key -n $name "${caps[@]}"
  done
  monmaptool --create --clobber --fsid "$(awk '/^fsid/{print $3}' "$conf")" \
    --addv a "[v2:127.0.0.1:$((port + 1))/0,v1:127.0.0.1:$((port + 2))/0]" "$dir/monmap"
  ceph-mon -c "$conf" --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring" --mon-data "$dir/mon"
}

new_osd() {
  local id
  id=$(cat /proc/sys/kernel/random/uuid)
  ceph -c "$conf" osd new "$id" 0
  ceph -c "$conf" auth import -i "$dir/keyring"
  ceph-osd -c "$conf" -i 0 --mkfs --osd-uuid "$id" --osd-data "$dir/osd"
}

osd_is_up() { ceph -c "$conf" --connect-timeout 5 osd stat | grep -q '1 up'; }

case $command in
start)
  is_new=no
  [ -f "$conf" ] || { is_new=yes; mkdir -p "$dir"; new_cluster >>"$dir/setup.log" 2>&1; }
  launch mon ceph-mon -c "$conf" -i a -f
  wait_for 60 ceph -c "$conf" --connect-timeout 5 mon stat
  [ $is_new = no ] || new_osd >>"$dir/setup.log" 2>&1
  launch osd ceph-osd -c "$conf" -i 0 -f --osd-data "$dir/osd"
  wait_for 120 osd_is_up
  launch rgw radosgw -c "$conf" -n client.rgw -f
  wait_for 120 curl -s -o "$dir/answer" "http://127.0.0.1:$port/"
  [ $is_new = no ] || radosgw-admin -c "$conf" -n client.rgw user create --uid=test \
    --display-name=test --access-key=testkey --secret-key=testsecret >>"$dir/setup.log" 2>&1
  ;;
kill-gateway)
  kill -9 "$(cat "$dir/rgw.pid")"
  wait_for 10 bash -c "! grep -qs '^State:.[^ZX]' /proc/$(cat "$dir/rgw.pid")/status"
  ;;
stop)
  for name in rgw osd mon; do
    if alive $name; then
      kill "$(cat "$dir/$name.pid")"
      for _ in $(seq 40); do alive $name || break; sleep 0.25; done
      if alive $name; then kill -9 "$(cat "$dir/$name.pid")"; fi
    fi
  done
  ;;
*)
  echo "unknown: $command" >&2
  exit 2
  ;;
esac
