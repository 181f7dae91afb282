package backend

import "fmt"

// limits are the limits of one badger transaction.
type limits struct {
	// entries and bytes bound what is written to the memtable.
	entries int
	bytes   int64
	// logBytes bounds what is written to the value log; a single value may exceed it.
	// Badger maps twice the file size. A transaction past the end of the mapping would
	// make badger move it while readers use it.
	logBytes int64
	// packBytes bounds the value of one pack.
	packBytes int64
}

const (
	// entryOverhead is what badger counts for an entry besides key and value: the
	// transaction number in the key and two meta bytes.
	entryOverhead = 12
	// pointerLen is the size in the memtable of a value in the value log.
	pointerLen = 12
	// ownEntries and ownBytes are reserved for the catalogue and for badger's end
	// marker.
	ownEntries = 4
	ownBytes   = 512
	// maxLogBytes bounds one transaction regardless of the size of the log file, so
	// that other calls do not wait long for it.
	maxLogBytes = 8 << 20
)

// newLimits returns the limits for badger's limits of a transaction and the size of its
// value logs.
func newLimits(maxCount, maxSize, valueLogBytes int64) limits {
	return limits{
		entries:   int(maxCount) - ownEntries,
		bytes:     maxSize - ownBytes,
		logBytes:  min(valueLogBytes/4, maxLogBytes),
		packBytes: valueLogBytes / 2,
	}
}

// usage is what a transaction uses of its limits.
type usage struct {
	entries  int
	bytes    int64
	logBytes int64
}

// plus returns the usage with one more entry.
func (u usage) plus(keyLen int, valueLen int64) usage {
	u.entries++
	u.bytes += int64(keyLen) + entryOverhead
	if valueLen >= valueThreshold {
		u.bytes += pointerLen
		u.logBytes += valueLen
	} else {
		u.bytes += valueLen
	}
	return u
}

func (u usage) fits(l limits) bool {
	return u.entries <= l.entries && u.bytes <= l.bytes && (u.logBytes <= l.logBytes || u.entries == 1)
}

// step is the part of a batch that one transaction commits.
type step = Batch

// valueLen returns the length of a value with its envelope.
func valueLen(parts ...[]byte) int64 {
	n := int64(headerLen)
	for _, p := range parts {
		n += int64(len(p))
	}
	return n
}

// planBatch splits a batch into transactions, as the package comment describes. It returns
// at least one step.
func planBatch(b Batch, l limits) ([]step, error) {
	if err := checkBatch(b, l); err != nil {
		return nil, err
	}
	state, err := planState(b, l)
	if err != nil {
		return nil, err
	}
	hasState := len(b.Set)+len(b.Unset) > 0

	var steps []step
	var used usage
	from := 0
	for i, p := range b.Put {
		next := used.plus(packKeyLen, valueLen(p.Parts...))
		if i > from && !next.fits(l) {
			steps = append(steps, step{Put: b.Put[from:i]})
			from, next = i, usage{}.plus(packKeyLen, valueLen(p.Parts...))
		}
		used = next
	}
	// The last packs and the state share a transaction if both fit.
	both := usage{used.entries + state.entries, used.bytes + state.bytes, used.logBytes + state.logBytes}
	if hasState && from < len(b.Put) && !both.fits(l) {
		steps = append(steps, step{Put: b.Put[from:]})
		from, both = len(b.Put), state
	}
	last := step{Put: b.Put[from:], Set: b.Set, Unset: b.Unset}
	used = both
	from = 0
	for i := range b.Delete {
		next := used.plus(packKeyLen, 0)
		if !next.fits(l) {
			last.Delete = b.Delete[from:i]
			steps = append(steps, last)
			last, from, next = step{}, i, usage{}.plus(packKeyLen, 0)
		}
		used = next
	}
	last.Delete = b.Delete[from:]
	return append(steps, last), nil
}

// planState returns the usage of the state, or an error if it does not fit one
// transaction.
func planState(b Batch, l limits) (usage, error) {
	var u usage
	for _, e := range b.Set {
		u = u.plus(1+len(e.Key), valueLen(e.Value))
	}
	for _, name := range b.Unset {
		u = u.plus(1+len(name), 0)
	}
	if u.logBytes > l.packBytes {
		return u, fmt.Errorf("%w: %d bytes of state, at most %d fit", ErrBatch, u.logBytes, l.packBytes)
	}
	small := u
	small.logBytes = 0
	if !small.fits(l) {
		return u, fmt.Errorf("%w: state of %d entries and %d bytes, at most %d and %d fit one transaction",
			ErrBatch, u.entries, u.bytes, l.entries, l.bytes)
	}
	return u, nil
}

// checkBatch checks the ids, names and sizes in a batch. Its error wraps ErrBatch.
func checkBatch(b Batch, l limits) error {
	packs := make(map[PackID]struct{}, len(b.Put)+len(b.Delete))
	once := func(id PackID) error {
		if !id.valid() {
			return fmt.Errorf("%w: pack id %s is out of range", ErrBatch, id)
		}
		if _, ok := packs[id]; ok {
			return fmt.Errorf("%w: pack %s occurs twice", ErrBatch, id)
		}
		packs[id] = struct{}{}
		return nil
	}
	for _, p := range b.Put {
		if err := once(p.ID); err != nil {
			return err
		}
		if n := valueLen(p.Parts...); n > l.packBytes {
			return fmt.Errorf("%w: pack %s of %d bytes, at most %d", ErrBatch, p.ID, n, l.packBytes)
		}
	}
	for _, id := range b.Delete {
		if err := once(id); err != nil {
			return err
		}
	}
	names := make(map[string]struct{}, len(b.Set)+len(b.Unset))
	onceName := func(name string) error {
		if name == "" || len(name) > maxNameLen {
			return fmt.Errorf("%w: state name of %d bytes, 1 to %d allowed", ErrBatch, len(name), maxNameLen)
		}
		if _, ok := names[name]; ok {
			return fmt.Errorf("%w: state %q occurs twice", ErrBatch, name)
		}
		names[name] = struct{}{}
		return nil
	}
	for _, e := range b.Set {
		if err := onceName(e.Key); err != nil {
			return err
		}
	}
	for _, name := range b.Unset {
		if err := onceName(name); err != nil {
			return err
		}
	}
	return nil
}
