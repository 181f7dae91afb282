package differ

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/measure/scrape"
)

// operationsFile has requests, and by how much etcd's metrics of operations grow with
// each. Tests of Troupe's own module compare it with a member.
const operationsFile = "../../../internal/node/testdata/operations.txt"

// operationMetrics are the metrics in the columns of operationsFile.
var operationMetrics = [5]string{
	"etcd_mvcc_put_total", "etcd_mvcc_delete_total", "etcd_mvcc_range_total", "etcd_mvcc_txn_total",
	"etcd_debugging_mvcc_total_put_size_in_bytes",
}

// TestOperationsAreCountedLikeEtcd: the metrics of operations of etcd, and those of
// Troupe, grow as operationsFile says.
func TestOperationsAreCountedLikeEtcd(t *testing.T) {
	b, err := os.ReadFile(operationsFile)
	if err != nil {
		t.Fatal(err)
	}
	sides := map[string]Side{
		"etcd":   etcdSide(t),
		"troupe": {Binary: server(t, "BENCH_DIFF_RIGHT", tools.Troupe), Args: fastElections},
	}
	for name, side := range sides {
		t.Run(name, func(t *testing.T) {
			r, err := begin(t.Context(), side, 1, t.TempDir(), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.end() }() // the test removes the folder
			before, requests := operationCounts(t, r), 0
			for line := range strings.Lines(string(b)) {
				line = strings.TrimSpace(line)
				if line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				want, c := parseOperation(t, line)
				invoke(t.Context(), r.members[0].conn, c) // it may fail
				after := operationCounts(t, r)
				var got [5]int64
				for i := range got {
					got[i] = after[i] - before[i]
				}
				if got != want {
					t.Errorf("%s %v: got %v, want %v", c.Method, c.Request, got, want)
				}
				before = after
				requests++
			}
			if requests < 80 {
				t.Errorf("got %d requests in the file, want at least 80", requests)
			}
		})
	}
}

func operationCounts(t *testing.T, r *running) (counts [5]int64) {
	t.Helper()
	for i, name := range operationMetrics {
		var err error
		if counts[i], err = scrape.Metric(context.Background(), r.members[0].server.Endpoint(), name); err != nil {
			t.Fatal(err)
		}
	}
	return counts
}

// parseOperation parses a line: five numbers, a method, and a request in protobuf's text
// format.
func parseOperation(t *testing.T, line string) (want [5]int64, c Call) {
	t.Helper()
	if _, err := fmt.Sscan(line, &want[0], &want[1], &want[2], &want[3], &want[4], &c.Method); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	requests := map[Method]proto.Message{
		Range: new(pb.RangeRequest), RangeStream: new(pb.RangeRequest), Put: new(pb.PutRequest),
		DeleteRange: new(pb.DeleteRangeRequest), Txn: new(pb.TxnRequest), Compact: new(pb.CompactionRequest),
		HashKV: new(pb.HashKVRequest), LeaseGrant: new(pb.LeaseGrantRequest),
		LeaseRevoke: new(pb.LeaseRevokeRequest), LeaseTimeToLive: new(pb.LeaseTimeToLiveRequest),
	}
	c.Request = requests[c.Method]
	if c.Request == nil {
		t.Fatalf("%q: no request of this method", line)
	}
	_, text, _ := strings.Cut(line, string(c.Method))
	if err := prototext.Unmarshal([]byte(text), c.Request); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return want, c
}
