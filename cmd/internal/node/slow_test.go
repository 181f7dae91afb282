package node

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
)

// lines is a log in memory.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// last returns a field of the last line with a message.
func (l *lines) last(message, field string) any {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := strings.Split(strings.TrimSpace(l.buf.String()), "\n")
	for i := len(all) - 1; i >= 0; i-- {
		var line map[string]any
		if json.Unmarshal([]byte(all[i]), &line) == nil && line["message"] == message {
			return line[field]
		}
	}
	return nil
}

// TestSlowestStage: the debug endpoint and the slow request log name the stage that is slow.
func TestSlowestStage(t *testing.T) {
	for _, stage := range []string{actors.CoreProposer, actors.CoreReadIndex, actors.CoreRaft,
		actors.CoreWAL, actors.CoreApply, actors.CoreMVCC, actors.CorePersister} {
		t.Run(strings.TrimPrefix(stage, "core/"), func(t *testing.T) {
			t.Parallel()
			log := new(lines)
			m := startMember(t, t.TempDir(), func(c *Config) {
				c.Logger = zerolog.New(log)
				c.Gateway.SlowRequest = time.Nanosecond // every request
				c.Faults.Delay(stage, 20*time.Millisecond)
			})
			defer m.shut()
			var fromLog any
			var fromJSON string
			for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
				m.put("k", "v")
				fromLog, fromJSON = log.last("slow request", "slowest_stage"), m.slowest()
				if fromLog == stage && fromJSON == stage {
					break
				}
			}
			if fromLog != stage || fromJSON != stage {
				t.Fatalf("got slowest stage %v in the log and %q on the endpoint, want %s", fromLog, fromJSON, stage)
			}
			if stages, _ := log.last("slow request", "stages").(map[string]any); stages[actors.CoreWAL] == nil {
				t.Fatalf("got stages %v in the log, want one for the WAL", stages)
			}
		})
	}
}

// newLogger returns a logger that writes to l.
func newLogger(l *lines) zerolog.Logger { return zerolog.New(l).Level(zerolog.InfoLevel) }

// http gets a path of the member.
func (m *testMember) http(path string) (code int, text string) {
	m.t.Helper()
	resp, err := http.Get("http://" + m.cfg.Listeners[0].Addr().String() + path)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// snapshot returns the state on the debug endpoint.
func (m *testMember) snapshot() (s actors.Snapshot) {
	m.t.Helper()
	_, text := m.http("/debug/actors?format=json")
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// eventually waits for a condition.
func (m *testMember) eventually(what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("still waiting until %s", what)
		}
	}
}

// slowest returns the slowest stage on the debug endpoint, and checks that every stage is
// there and within its limits.
func (m *testMember) slowest() string {
	m.t.Helper()
	s := m.snapshot()
	seen := map[string]bool{}
	for _, b := range s.Mailboxes {
		seen[b.Name] = true
		for _, l := range b.Lanes {
			if l.LimitRequests > 0 && l.HighWaterRequests > l.LimitRequests || l.LimitBytes > 0 && l.HighWaterBytes > l.LimitBytes {
				m.t.Fatalf("%s: %s exceeds its limit: %+v", b.Name, l.Name, l)
			}
		}
	}
	for _, name := range []string{actors.CoreProposer, actors.CoreReadIndex, actors.CoreRaft, actors.CoreWAL,
		actors.CoreApply, actors.CoreMVCC, actors.CorePersister} {
		if !seen[name] {
			m.t.Fatalf("the debug endpoint has no %s", name)
		}
	}
	return s.SlowestStage
}
