package registers

import (
	"errors"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/cluster"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
)

func TestCheck(t *testing.T) {
	put := func(value string, called, returned int64) call {
		return call{key: "k", put: true, value: value, called: called, returned: returned}
	}
	get := func(value string, called, returned int64) call {
		return call{key: "k", value: value, called: called, returned: returned}
	}
	for name, c := range map[string]struct {
		calls   []call
		unknown int
		want    error
	}{
		"in order":              {[]call{put("a", 1, 2), get("a", 3, 4)}, 0, nil},
		"before the first":      {[]call{get("", 1, 2), put("a", 3, 4)}, 0, nil},
		"overlapping":           {[]call{put("a", 1, 2), put("b", 3, 9), get("a", 4, 5), get("b", 6, 7)}, 0, nil},
		"stale":                 {[]call{put("a", 1, 2), put("b", 3, 4), get("a", 5, 6)}, 0, ErrNotLinearizable},
		"lost":                  {[]call{put("a", 1, 2), get("", 5, 6)}, 0, ErrNotLinearizable},
		"going back":            {[]call{put("a", 1, 2), put("b", 3, 9), get("b", 4, 5), get("a", 6, 7)}, 0, ErrNotLinearizable},
		"from the future":       {[]call{get("a", 1, 2), put("a", 3, 4)}, 0, ErrNotLinearizable},
		"unanswered, effective": {[]call{put("a", 1, 2), put("b", 3, never), get("a", 5, 6), get("b", 7, 8)}, 1, nil},
		"unanswered, without":   {[]call{put("a", 1, 2), put("b", 3, never), get("a", 5, 6)}, 1, nil},
		"unanswered, twice":     {[]call{put("b", 1, never), get("b", 2, 3), put("a", 4, 5), get("a", 6, 7), get("b", 8, 9)}, 1, ErrNotLinearizable},
	} {
		got, err := check(c.calls)
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if want := (Result{Calls: len(c.calls) - c.unknown, Unknown: c.unknown}); err == nil && got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
		if err != nil && !strings.Contains(err.Error(), "? client 0: get") {
			t.Errorf("%s: got %v, want the read that does not fit", name, err)
		}
	}
}

// Keys of different registers do not depend on each other.
func TestCheckKeys(t *testing.T) {
	calls := []call{
		{key: "k", put: true, value: "a", called: 1, returned: 2},
		{key: "l", called: 3, returned: 4},
		{key: "k", value: "a", called: 5, returned: 6},
	}
	if _, err := check(calls); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

// The clients of a real server.
func TestLoad(t *testing.T) {
	server := servers.Server{Name: "etcd", Binary: benchtest.Program(t, tools.Etcd)}
	s, err := server.Start(t.Context(), t.TempDir(), "--unsafe-no-fsync")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	conn, err := cluster.Dial(s.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conns := []*grpc.ClientConn{conn, conn, conn}
	l := Start(t.Context(), conns, "registers/")
	for {
		if value, err := read(t.Context(), pb.NewKVClient(conn), "registers/3"); err != nil {
			t.Fatal(err)
		} else if value != "" {
			break
		}
	}
	l.Stop()
	r, err := l.Check(t.Context(), conns)
	if err != nil || r.Calls <= 3*keys || r.Unknown != 0 {
		t.Errorf("got %+v, %v, want more than the %d final reads", r, err, 3*keys)
	}
}
