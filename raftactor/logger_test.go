package raftactor

import (
	"bytes"
	"testing"

	"github.com/rs/zerolog"
)

// TestLoggerLevels: what raft logs in normal operation again and again is for debugging.
func TestLoggerLevels(t *testing.T) {
	var b bytes.Buffer
	l := &Logger{Log: zerolog.New(&b)}
	for _, c := range []struct {
		log  func()
		want string
	}{
		{func() { l.Infof("%x became leader at term %d", 1, 2) }, `{"level":"info","message":"1 became leader at term 2"}` + "\n"},
		{func() { l.Infof("entry at index %d missing from unstable log; ignoring", 7) },
			`{"level":"debug","message":"entry at index 7 missing from unstable log; ignoring"}` + "\n"},
	} {
		b.Reset()
		c.log()
		if got := b.String(); got != c.want {
			t.Errorf("got %swant %s", got, c.want)
		}
	}
}
