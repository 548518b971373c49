#!/bin/bash
# Gatepost as a target of the shared harness (../../../shared/bench): ours.sh start|stop, from the project's root.
# Needs `cargo build --release`, and the harness' BENCH_ROOT with its DNS running. Domain bench.test, inboxes
# u0 to u19 without limits, SMTP 2700, HTTP 2702, the counter on 2703; mail leaves to 127.0.0.1:2599. Data and log in
# $BENCH_ROOT/gatepost, made anew.
# DATABASE=postgres://… for PostgreSQL; KEEP=1 keeps what is stored.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
dir=${BENCH_ROOT:-/var/tmp/mailbench}/gatepost
binary=${GATEPOST_BINARY:-$root/target/release/gatepost}
stop() { for name in counter server; do if [ -s "$dir/$name.pid" ]; then kill "$(cat "$dir/$name.pid")" 2>/dev/null || true; fi; rm -f "$dir/$name.pid"; done; sleep 1; }

case ${1:-start} in
stop) stop ;;
start)
    stop
    [ -n "${KEEP:-}" ] || rm -rf "$dir"
    mkdir -p "$dir"
    ulimit -n 20000
    cat >"$dir/gatepost.toml" <<TOML
hostname = "mx.bench.test"
domains = ["bench.test"]
data_dir = "$dir/data"
[database]
url = "${DATABASE:-sqlite:$dir/data/gatepost.db}"
[smtp]
listen = "127.0.0.1:2700"
[submission]
listen = ""
listen_tls = ""
[imap]
listen = ""
listen_tls = ""
[http]
listen = "127.0.0.1:2702"
public_url = "http://127.0.0.1:2702"
[dns]
servers = ["127.0.0.1:53"]
[relay]
port = 2599
allow_private_addresses = true
[log]
level = "warn"
TOML
    export GATEPOST_ADMIN_KEY=gp_bench_admin_key_0123456789abcdefghijklmnopqrstuvwxyz
    "$binary" serve --config "$dir/gatepost.toml" >"$dir/ready" 2>"$dir/log" &
    echo $! >"$dir/server.pid"
    for _ in $(seq 200); do grep -q '^ready' "$dir/ready" && break; sleep 0.05; done
    grep '^ready' "$dir/ready" || { tail -5 "$dir/log" >&2; exit 1; }
    for n in $(seq 0 19); do
        curl -fsS -o "$dir/answer" "http://127.0.0.1:2702/v0/inboxes" -H "Authorization: Bearer $GATEPOST_ADMIN_KEY" \
            -H 'Content-Type: application/json' -d "{\"username\": \"u$n\", \"client_id\": \"u$n\"}"
        curl -fsS -o "$dir/answer" -X PUT "http://127.0.0.1:2702/v1/inboxes/u$n@bench.test/limits" \
            -H "Authorization: Bearer $GATEPOST_ADMIN_KEY" -H 'Content-Type: application/json' \
            -d '{"per_minute": null, "per_hour": null, "per_day": null}'
    done
    python3 "$here/counter.py" 2703 "${DATABASE:-$dir/data/gatepost.db}" >"$dir/counter.log" 2>&1 &
    echo $! >"$dir/counter.pid"
    sleep 0.5
    ;;
esac
