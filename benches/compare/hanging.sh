#!/bin/bash
# The Postfix of `cargo bench --bench road -- hanging --postfix`: hanging.sh start TRANSPORT-MAP|stop. It is the harness'
# own (../../../shared/bench, `sign`: opendkim, port 2570) with a route for each domain in place of the relayhost, and an
# empty queue each time.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
setup=${HARNESS:-$here/../../../shared/bench}/setup
export BENCH_ROOT=${BENCH_ROOT:-/var/tmp/mailbench}
dir=$BENCH_ROOT/pf-hanging
case $1 in
start)
    rm -rf "$dir/queue"
    "$setup/postfix.sh" start pf-hanging 2570 sign
    cp "$2" "$dir/etc/transport"
    postconf -c "$dir/etc" -e relayhost= "transport_maps=texthash:$dir/etc/transport"
    # Its master may still be on its way up.
    for _ in $(seq 20); do postfix -c "$dir/etc" reload && break; sleep 0.2; done
    sleep 2
    ;;
stop)
    milter=$(cat "$dir/opendkim.mpid" 2>/dev/null || true)
    "$setup/postfix.sh" stop pf-hanging 2570 sign
    # At its end it removes its socket, which must not be the next one's.
    for _ in $(seq 100); do [ -n "$milter" ] && [ -d "/proc/$milter" ] || break; sleep 0.1; done
    ;;
esac
