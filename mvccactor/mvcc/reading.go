package mvcc

// Reading bounds what a read uses. A read calls its methods on the goroutine of its caller,
// before it visits keys or allocates its answer. If a method returns an error, the read
// ends with that error: this is how a read ends whose client has gone.
type Reading interface {
	// Scan is called before so many keys are visited. It may wait for a turn. It is
	// called again for each part of a larger read, and if the read starts again because
	// of a compaction.
	Scan(keys int) error
	// Step is called after each slice of sliceKeys keys.
	Step() error
	// Hold is called before an answer of so many bytes is allocated. It may wait for
	// credit. If the read starts again, it is called again, for the answer that replaces
	// the first one.
	Hold(bytes int) error
}

// Unpaced is a Reading that bounds nothing, for reads that are small or have a bound of
// their own.
type Unpaced struct{}

// Scan implements Reading.
func (Unpaced) Scan(int) error { return nil }

// Step implements Reading.
func (Unpaced) Step() error { return nil }

// Hold implements Reading.
func (Unpaced) Hold(int) error { return nil }

const (
	// sliceKeys is how many keys are visited, compared or encoded between two calls of
	// Step. It bounds how long a read runs after its client has gone.
	sliceKeys = 1000
	// loadWork is how many keys a pack counts for that is read from the store.
	loadWork = 200
)

// pace calls Step after each slice of a read.
type pace struct {
	rd   Reading
	left int   // keys left of the slice
	err  error // the first error of Step; it ends the read
}

// tick counts keys that were visited, compared or encoded. It returns false if the read
// must end; err is the reason.
func (p *pace) tick(work int) bool {
	if p.left -= work; p.left > 0 {
		return true
	}
	p.left = sliceKeys
	if p.err == nil {
		p.err = p.rd.Step()
	}
	return p.err == nil
}
