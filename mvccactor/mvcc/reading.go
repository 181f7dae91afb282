package mvcc

// Reading is the caller of a read, on whose goroutine it runs. A read asks it
// before it uses much of anything, so that the caller can bound what reads hold
// and end the ones whose answer nobody waits for. Each method may return an error,
// which ends the read and becomes its error.
type Reading interface {
	// Scan is called before that many keys are visited. It may wait for a turn.
	// It is called again for each part of a larger read, and when a compaction
	// makes the read start over.
	Scan(keys int) error
	// Step is called between the slices of a scan, about every millisecond.
	Step() error
	// Hold is called before an answer of that many bytes is put together. It may
	// wait for room. A read that starts over calls it again, for the answer that
	// takes the place of the first.
	Hold(bytes int) error
}

// Unpaced is a Reading that lets everything pass: for reads that are bounded by
// themselves.
type Unpaced struct{}

// Scan implements Reading.
func (Unpaced) Scan(int) error { return nil }

// Step implements Reading.
func (Unpaced) Step() error { return nil }

// Hold implements Reading.
func (Unpaced) Hold(int) error { return nil }

const (
	// sliceKeys is how many keys are visited, compared or encoded between two
	// steps: with all of it in memory that takes about a tenth of a millisecond.
	sliceKeys = 1000
	// loadWork is what reading a pack from the store counts for, in keys.
	loadWork = 200
)

// pace calls Step after each slice of a read.
type pace struct {
	rd   Reading
	left int // of the slice, in keys
	err  error
}

// tick counts work, in keys. It returns false once the read has to end; err says
// why.
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
