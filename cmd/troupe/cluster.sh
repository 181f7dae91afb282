#!/bin/sh
# Runs three members on loopback until Ctrl-C and prints how to talk to them.
#
#   cluster.sh BINARY [DIR]
#
# The data and the logs are in DIR, which a later run continues with, or in a temporary
# folder that is removed at the end. BINARY is troupe, or etcd, which has the same flags.
# CLIENT_PORT is the first of three client ports, PEER_PORT the first of three peer ports.
set -eu

binary=$1
dir=${2:-}
client=${CLIENT_PORT:-2379}
peer=${PEER_PORT:-2479}
temporary=
if [ -z "$dir" ]; then
	dir=$(mktemp -d)
	temporary=$dir
fi
mkdir -p "$dir"

pids=
stop() {
	trap - INT TERM EXIT
	# A member that has ended is no error.
	for pid in $pids; do kill "$pid" 2>/dev/null || true; done
	for pid in $pids; do wait "$pid" 2>/dev/null || true; done
	if [ -n "$temporary" ]; then rm -rf "$temporary"; fi
}
trap 'stop; exit 0' INT TERM
trap stop EXIT

members=
endpoints=
for i in 0 1 2; do
	members=$members${members:+,}m$((i + 1))=http://127.0.0.1:$((peer + i))
	endpoints=$endpoints${endpoints:+,}127.0.0.1:$((client + i))
done
for i in 0 1 2; do
	name=m$((i + 1))
	"$binary" --name $name --data-dir "$dir/$name" \
		--listen-client-urls http://127.0.0.1:$((client + i)) --advertise-client-urls http://127.0.0.1:$((client + i)) \
		--listen-peer-urls http://127.0.0.1:$((peer + i)) --initial-advertise-peer-urls http://127.0.0.1:$((peer + i)) \
		--initial-cluster "$members" --initial-cluster-token loopback >"$dir/$name.log" 2>&1 &
	pids="$pids $!"
done

# A member logs this line when there is a leader.
tries=0
for i in 1 2 3; do
	until grep -q "ready to serve client requests" "$dir/m$i.log"; do
		for pid in $pids; do
			if ! kill -0 "$pid" 2>/dev/null; then
				echo "a member has ended; see the logs:" >&2
				tail -n 3 "$dir"/m?.log >&2
				exit 1
			fi
		done
		tries=$((tries + 1))
		if [ $tries -gt 600 ]; then
			echo "no leader after a minute; see $dir/m1.log" >&2
			exit 1
		fi
		sleep 0.1
	done
done

cat <<END
Three members run, with data and logs in $dir:

  m1 process $(echo $pids | cut -d' ' -f1), m2 process $(echo $pids | cut -d' ' -f2), m3 process $(echo $pids | cut -d' ' -f3)

  export ETCDCTL_ENDPOINTS=$endpoints
  etcdctl endpoint status -w table
  etcdctl member list -w table
  etcdctl put greeting hello && etcdctl get greeting

Ctrl-C stops them.
END
# A member may be killed and leave the others to it; the end is when all have ended.
wait
