package pairs

import (
	"cmp"
	"context"
	"os"
	"strings"

	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
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
		list, err := servers.List(ctx, name)
		if err != nil {
			return nil, err
		}
		contestants = append(contestants, Contestant{Server: list[0]})
	}
	return contestants, nil
}
