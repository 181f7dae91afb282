package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// operationMetrics are the metrics in the columns of testdata/operations.txt.
var operationMetrics = []string{
	"etcd_mvcc_put_total", "etcd_mvcc_delete_total", "etcd_mvcc_range_total", "etcd_mvcc_txn_total",
	"etcd_debugging_mvcc_total_put_size_in_bytes",
}

// TestOperationCounts: the metrics of operations grow as etcd's do. The file has the
// requests and by how much etcd's metrics grow with each.
func TestOperationCounts(t *testing.T) {
	b, err := os.ReadFile("testdata/operations.txt")
	if err != nil {
		t.Fatal(err)
	}
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	before, requests := m.operationCounts(), 0
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var want [5]int
		var method string
		if _, err := fmt.Sscan(line, &want[0], &want[1], &want[2], &want[3], &want[4], &method); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		_, request, _ := strings.Cut(line, method)
		if err := call(t.Context(), m.client.ActiveConnection(), method, request); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		after := m.operationCounts()
		var got [5]int
		for i := range got {
			got[i] = after[i] - before[i]
		}
		if got != want {
			t.Errorf("%s%s: got %v, want %v", method, request, got, want)
		}
		before = after
		requests++
	}
	if requests < 80 {
		t.Fatalf("got %d requests in the file, want at least 80", requests)
	}
}

// operationCounts returns the values of operationMetrics.
func (m *testMember) operationCounts() (counts [5]int) {
	m.t.Helper()
	_, text := m.http("/metrics")
	for i, name := range operationMetrics {
		_, value, _ := strings.Cut(text, "\n"+name+" ")
		if _, err := fmt.Sscan(value, &counts[i]); err != nil {
			m.t.Fatalf("metric %s: %v", name, err)
		}
	}
	return counts
}

// call sends a request of any method and receives all responses. The request is in
// protobuf's text format. A status that the server returns is no error.
func call(ctx context.Context, conn grpc.ClientConnInterface, method, request string) error {
	services := pb.File_rpc_proto.Services()
	for i := range services.Len() {
		m := services.Get(i).Methods().ByName(protoreflect.Name(method))
		if m == nil {
			continue
		}
		req := dynamicpb.NewMessage(m.Input())
		if err := prototext.Unmarshal([]byte(request), req); err != nil {
			return err
		}
		path := fmt.Sprintf("/%s/%s", services.Get(i).FullName(), method)
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path)
		if err != nil {
			return err
		}
		if err := errors.Join(stream.SendMsg(req), stream.CloseSend()); err != nil {
			return err
		}
		for err == nil {
			err = stream.RecvMsg(dynamicpb.NewMessage(m.Output()))
		}
		if _, ok := status.FromError(err); ok || errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	return fmt.Errorf("no method %s", method)
}
