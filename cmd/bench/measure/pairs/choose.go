package pairs

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadtool"
)

// ChooseLoads resolves a comma-separated list of loads. Sizes that are not 0 replace
// those that fit each load.
func ChooseLoads(names string, sizes Load) ([]Load, error) {
	var list []Load
	for _, name := range strings.Split(names, ",") {
		l, err := DefaultLoad(name)
		if err != nil {
			return nil, err
		}
		list = append(list, Load{
			Name: name, Clients: cmp.Or(sizes.Clients, l.Clients), Conns: cmp.Or(sizes.Conns, l.Conns), Total: cmp.Or(sizes.Total, l.Total),
			Watchers: loadtool.Watchers{
				Streams:   cmp.Or(sizes.Watchers.Streams, l.Watchers.Streams),
				PerStream: cmp.Or(sizes.Watchers.PerStream, l.Watchers.PerStream),
				PutRate:   cmp.Or(sizes.Watchers.PutRate, l.Watchers.PutRate),
			},
		})
	}
	return list, nil
}

// echoName is the contestant with constant replies, which this program serves itself.
const echoName = "echo"

// grpcOnlyName is Troupe with HTTP on a port of its own, so that the port of the clients serves
// gRPC alone.
const grpcOnlyName = "troupe-grpc"

// Contestants resolves a comma-separated list of servers. The one with constant replies is
// left out if there are several members, or with TLS.
func Contestants(ctx context.Context, names string, members int, tls bool) ([]Contestant, error) {
	var contestants []Contestant
	for _, name := range strings.Split(names, ",") {
		if name == echoName && (members > 1 || tls) {
			continue
		}
		if name == echoName {
			self, err := os.Executable()
			if err != nil {
				return nil, err
			}
			contestants = append(contestants, Contestant{
				Server: servers.Server{Name: echoName, Binary: self, Command: []string{echoName}},
				Lacks:  []string{RangeLoad, WatchLoad, WatchLatencyLoad, GetUnderPutLoad},
			})
			continue
		}
		if name == grpcOnlyName {
			c, err := grpcOnly(ctx, members, tls)
			if err != nil {
				return nil, err
			}
			contestants = append(contestants, c)
			continue
		}
		list, err := servers.List(ctx, name)
		if err != nil {
			return nil, err
		}
		contestants = append(contestants, Contestant{Server: list[0]})
	}
	return contestants, nil
}

// grpcOnly returns the contestant grpcOnlyName.
func grpcOnly(ctx context.Context, members int, tls bool) (Contestant, error) {
	if members > 1 {
		return Contestant{}, fmt.Errorf("pairs: %s is measured as a single member", grpcOnlyName)
	}
	list, err := servers.List(ctx, string(tools.Troupe))
	if err != nil {
		return Contestant{}, err
	}
	scheme := "http"
	if tls {
		scheme = "https"
	}
	server := list[0]
	server.Name, server.Args = grpcOnlyName, []string{"--listen-client-http-urls", scheme + "://127.0.0.1:0"}
	return Contestant{Server: server}, nil
}
