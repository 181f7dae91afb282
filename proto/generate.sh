#!/bin/sh
# Regenerates the Go code of every .proto file below this folder.
#
# The .proto files of raft and of the etcd API come from their Go modules, so
# the versions in go.mod decide; they are copied to .deps, which git ignores.
set -eu
cd "$(dirname "$0")"

buf=github.com/bufbuild/buf/cmd/buf@v1.73.0
googleapis=github.com/gogo/googleapis@v1.4.1 # only its .proto files are read

module() { go list -m -f '{{.Dir}}' "$1"; }

rm -rf .deps
mkdir -p .deps/raftpb .deps/etcdserverpb .deps/imports/etcd/api .deps/imports/google/api \
	.deps/imports/protoc-gen-openapiv2/options
cp "$(module go.etcd.io/raft/v3)/raftpb/raft.proto" .deps/raftpb/
api=$(module go.etcd.io/etcd/api/v3)
cp "$api/etcdserverpb/rpc.proto" .deps/etcdserverpb/
for f in mvccpb/kv authpb/auth versionpb/version; do
	mkdir -p ".deps/imports/etcd/api/${f%/*}"
	cp "$api/$f.proto" ".deps/imports/etcd/api/$f.proto"
done
go mod download "$googleapis"
dir="$(go env GOMODCACHE)/$googleapis"
for f in annotations http; do # this module's go_package is not an import path
	sed 's|^option go_package = .*|option go_package = "google.golang.org/genproto/googleapis/api/annotations";|' \
		"$dir/google/api/$f.proto" >".deps/imports/google/api/$f.proto"
done
dir=$(module github.com/grpc-ecosystem/grpc-gateway/v2)
cp "$dir"/protoc-gen-openapiv2/options/*.proto .deps/imports/protoc-gen-openapiv2/options/
chmod -R u+w .deps

go run "$buf" generate
