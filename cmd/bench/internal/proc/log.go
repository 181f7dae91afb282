package proc

import (
	"bytes"
	"slices"
	"strings"
	"sync"
)

const (
	// tailLines is the number of lines of a server's output that are kept for errors.
	tailLines = 40
	// lineBytesMax is the most bytes of a line that are kept.
	lineBytesMax = 4 << 10
)

// logTail is the writer for a server's stdout and stderr. It keeps the last lines and
// signals when expected lines arrive.
type logTail struct {
	mu       sync.Mutex
	lines    [][]byte // ring of the last tailLines lines
	next     int      // where the next line goes
	partial  []byte   // an unfinished line
	expected []expectation
}

// expectation is a text that a line is expected to contain. found is closed by Write at the
// first such line, which ends the expectation.
type expectation struct {
	needle []byte
	found  chan struct{}
}

func newLogTail() *logTail { return &logTail{lines: make([][]byte, tailLines)} }

// expect returns a channel that is closed when a line containing needle
// arrives after this call.
func (l *logTail) expect(needle string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := expectation{[]byte(needle), make(chan struct{})}
	l.expected = append(l.expected, e)
	return e.found
}

// clear removes the kept lines.
func (l *logTail) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.lines)
	l.partial = l.partial[:0]
}

// Write never fails.
func (l *logTail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := p; len(rest) > 0; {
		line, after, complete := bytes.Cut(rest, []byte("\n"))
		if room := lineBytesMax - len(l.partial); room > 0 {
			l.partial = append(l.partial, line[:min(room, len(line))]...)
		}
		if !complete {
			break
		}
		l.finishLine()
		rest = after
	}
	return len(p), nil
}

func (l *logTail) finishLine() {
	l.lines[l.next] = bytes.Clone(l.partial)
	l.next = (l.next + 1) % len(l.lines)
	l.expected = slices.DeleteFunc(l.expected, func(e expectation) bool {
		arrived := bytes.Contains(l.partial, e.needle)
		if arrived {
			close(e.found)
		}
		return arrived
	})
	l.partial = l.partial[:0]
}

// String joins the kept lines, oldest first.
func (l *logTail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for i := range l.lines {
		if line := l.lines[(l.next+i)%len(l.lines)]; line != nil {
			b.Write(line)
			b.WriteByte('\n')
		}
	}
	b.Write(l.partial)
	return b.String()
}
