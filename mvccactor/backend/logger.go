package backend

import (
	"fmt"
	"strings"
	"sync"
)

// logBridge is badger's logger. Badger reports some failures only in its log, for example
// a failed fsync of the value log. So an error that it logs makes the store fail.
type logBridge struct {
	log Logger
	// fail is called with every error that badger logs, except those of reads.
	fail func(error)

	mu sync.Mutex
	// ignored is the path of a damaged table that badger skipped while it opened;
	// empty if there is none.
	ignored string
	// rewrite is set by onRewrite; nil if nothing is to be called.
	rewrite func()
}

// readErrorFormats are the errors that badger logs if it cannot read a value. They do not
// make the store fail: the reader gets an error too, and if a rewrite of the value log
// caused it, the next attempt succeeds.
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

// ignoredTable returns the path of a damaged table that badger skipped, or "".
func (b *logBridge) ignoredTable() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ignored
}

// Warningf implements badger.Logger.
func (b *logBridge) Warningf(format string, args ...any) {
	b.log.Warnf("badger: %s", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// Infof implements badger.Logger. It logs at debug level, because the lines are about
// badger's internals.
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

// rewriteFormat is the line that badger logs when it begins to rewrite a value log.
const rewriteFormat = "Rewriting fid: %d"

// onRewrite sets a function to call when badger begins to rewrite a value log, in the
// goroutine of the rewrite. nil unsets it.
func (b *logBridge) onRewrite(fn func()) {
	b.mu.Lock()
	b.rewrite = fn
	b.mu.Unlock()
}

// Debugf implements badger.Logger. Only the receiver formats the line.
func (b *logBridge) Debugf(format string, args ...any) {
	b.log.Debugf("badger: "+strings.TrimSpace(format), args...)
}
