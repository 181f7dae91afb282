package logging

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/config"
)

func open(t *testing.T, cfg config.Log, out, err io.Writer) *Log {
	t.Helper()
	l, e := Open(cfg, out, err)
	if e != nil {
		t.Fatal(e)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// TestEveryLineHasTheKeys: each line is an object with level, ts, caller and msg,
// also those of libraries.
func TestEveryLineHasTheKeys(t *testing.T) {
	var b bytes.Buffer
	l := open(t, config.Log{Level: "debug", Format: config.LogJSON, Outputs: []string{config.LogDefault}}, nil, &b)
	l.Info().Str("message", "kept apart").Msg("direct")
	actors.NewSlog(l.Logger).Warn("from slog", slog.String("message", "renamed"))
	log.New(lineWriter{l.Logger}, "", 0).Print("from net/http")
	g := grpcLogger{l.Logger}
	g.Infoln("grpc", "info")
	g.Warningf("grpc %s", "warning")
	g.Warningln("[core] grpc: addrConn.createTransport failed to connect")
	g.Error("grpc error")
	want := []struct{ level, msg string }{
		{"info", "direct"}, {"warn", "from slog"}, {"warn", "from net/http"},
		{"debug", "grpc info"}, {"info", "grpc warning"},
		{"debug", "[core] grpc: addrConn.createTransport failed to connect"}, {"warn", "grpc error"},
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines:\n%s", len(lines), b.String())
	}
	for i, line := range lines {
		var e struct{ Level, TS, Caller, Msg string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if at, err := time.Parse(timeFormat, e.TS); err != nil || time.Since(at).Abs() > time.Minute || !strings.HasSuffix(e.TS, "Z") {
			t.Errorf("ts of %s: %v", line, err)
		}
		if e.Level != want[i].level || e.Msg != want[i].msg || !strings.Contains(e.Caller, ".go:") || strings.Count(e.Caller, "/") != 1 {
			t.Errorf("got %s, want %v", line, want[i])
		}
	}
	if !strings.Contains(lines[0], `"caller":"logging/logging_test.go:`) {
		t.Errorf("caller of %s", lines[0])
	}
}

func TestLevel(t *testing.T) {
	var b bytes.Buffer
	l := open(t, config.Log{Level: "warn", Format: config.LogJSON, Outputs: []string{config.LogStderr}}, nil, &b)
	l.Info().Msg("no")
	grpcLogger{l.Logger}.Info("no")
	if (grpcLogger{l.Logger}).V(0) {
		t.Error("gRPC formats messages that are not logged")
	}
	l.Warn().Msg("yes")
	if n := strings.Count(b.String(), "\n"); n != 1 {
		t.Errorf("%d lines:\n%s", n, b.String())
	}
}

func TestOutputs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(file, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, err bytes.Buffer
	l := open(t, config.Log{Level: "info", Format: config.LogJSON, Outputs: []string{file, config.LogStdout, config.LogStderr}}, &out, &err)
	l.Info().Msg("here")
	content, e := os.ReadFile(file)
	if e != nil {
		t.Fatal(e)
	}
	if !bytes.HasPrefix(content, []byte("before\n{")) {
		t.Errorf("the file was not appended to: %s", content)
	}
	for name, got := range map[string]string{"file": string(content), "stdout": out.String(), "stderr": err.String()} {
		if !strings.Contains(got, `"msg":"here"`) {
			t.Errorf("%s holds %q", name, got)
		}
	}
	if _, err := Open(config.Log{Level: "info", Outputs: []string{filepath.Join(file, "below-a-file")}}, nil, nil); err == nil {
		t.Error("no error for a path that cannot exist")
	}
}

func TestConsole(t *testing.T) {
	var b bytes.Buffer
	l := open(t, config.Log{Level: "info", Format: config.LogConsole, Outputs: []string{config.LogStdout}}, &b, nil)
	l.Info().Str("key", "value").Msg("for people")
	if s := b.String(); strings.HasPrefix(s, "{") || !strings.Contains(s, "for people") || !strings.Contains(s, "key=value") {
		t.Errorf("%q", s)
	}
	if zerolog.MessageFieldName != "msg" {
		t.Error("field names were not set")
	}
}
