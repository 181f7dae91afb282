module github.com/troupe-db/troupe/cmd/bench

go 1.26.0

require (
	github.com/anishathalye/porcupine v1.3.1
	github.com/troupe-db/troupe v0.0.0-00010101000000-000000000000
	go.etcd.io/etcd/api/v3 v3.7.3
	golang.org/x/net v0.61.0
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
)

require (
	github.com/golang/protobuf v1.5.4 // indirect
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.29.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
)

// Its one package without dependencies, cmd/internal/links.
replace github.com/troupe-db/troupe => ../..
