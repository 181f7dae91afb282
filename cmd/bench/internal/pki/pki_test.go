package pki

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// TestServerWithTLS: a server with the files serves clients with them, and no others.
func TestServerWithTLS(t *testing.T) {
	f, err := Make(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	server := benchtest.Troupe(t)
	server.Args, server.TLS = f.ServerArgs(), true
	p, err := server.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	pair := func(int) (key, value []byte) { return []byte("a"), nil }
	if err := loadgen.Fill(t.Context(), p.Endpoint(), 1, 1, 1, pair, f.DialOption()); err != nil {
		t.Errorf("with TLS: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := loadgen.Fill(ctx, p.Endpoint(), 1, 1, 1, pair); err == nil {
		t.Error("a client without TLS is served")
	}
	if err := f.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(f.dir); !os.IsNotExist(err) {
		t.Errorf("got %v, want the folder gone", err)
	}
}
