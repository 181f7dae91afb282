package backend

import (
	"fmt"
	"strings"
	"sync"
)

// logBridge takes badger's log. Badger reports some failures, a failed fsync of
// the value log among them, nowhere else, so that its error lines are errors.
type logBridge struct {
	log Logger
	// fail is told every error line that does not come from a read.
	fail func(error)

	mu      sync.Mutex
	ignored string // file of a table that badger opened without
	rewrite func() // see onRewrite
}

// readErrorFormats are the lines badger logs when it cannot read a value. The
// reader finds out by itself, and a reader that lost a race with the value log's
// collection succeeds at its next attempt.
var readErrorFormats = []string{
	"Unable to read: Key:",
	"Key: %v, Version : %v",
	"Invalid read: vp:",
}

const ignoredTableFormat = "Ignoring table %s"

// Errorf implements badger.Logger.
func (b *logBridge) Errorf(format string, args ...any) {
	text := strings.TrimSpace(fmt.Sprintf(format, args...))
	for _, f := range readErrorFormats {
		if strings.HasPrefix(format, f) {
			b.log.Debugf("badger: %s", text)
			return
		}
	}
	if format == ignoredTableFormat && len(args) == 1 {
		b.mu.Lock()
		b.ignored = fmt.Sprint(args[0])
		b.mu.Unlock()
	}
	b.log.Errorf("badger: %s", text)
	b.fail(fmt.Errorf("badger: %s", text))
}

// ignoredTable returns the path of a damaged table that badger left out.
func (b *logBridge) ignoredTable() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ignored
}

// Warningf implements badger.Logger.
func (b *logBridge) Warningf(format string, args ...any) {
	b.log.Warnf("badger: %s", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// Infof implements badger.Logger. What badger calls information is of use to
// nobody but its developers.
func (b *logBridge) Infof(format string, args ...any) {
	if format == rewriteFormat {
		b.mu.Lock()
		fn := b.rewrite
		b.mu.Unlock()
		if fn != nil {
			fn()
		}
	}
	b.Debugf(format, args...)
}

// rewriteFormat is the line with which badger begins to rewrite a value log.
const rewriteFormat = "Rewriting fid: %d"

// onRewrite sets what is called when badger begins to rewrite a value log, in
// the goroutine that does it; nil is nothing.
func (b *logBridge) onRewrite(fn func()) {
	b.mu.Lock()
	b.rewrite = fn
	b.mu.Unlock()
}

// Debugf implements badger.Logger. The line is formatted by the receiver only.
func (b *logBridge) Debugf(format string, args ...any) {
	b.log.Debugf("badger: "+strings.TrimSpace(format), args...)
}
