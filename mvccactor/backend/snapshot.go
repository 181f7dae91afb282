package backend

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A copy of a store travels in two steps, in the order of the data:
//
//	Snapshot    copies, between two commits, the list of packs. If their values are few
//	            enough, it copies these and the state too, so that all of it is of the
//	            same moment
//	LoadStored  reads a listed pack with its envelope, and checks it against the list
//	OpenPack, OpenState
//	            check a value that arrived, against the checksum in its envelope
//
// Packs that may change between the two, and how to exclude that, are the caller's concern.

// ErrChanged means that a pack is not the one that a snapshot lists: it was replaced or
// deleted since.
var ErrChanged = errors.New("backend: pack has changed since the snapshot")

// PackInfo identifies the value of a pack.
type PackInfo struct {
	ID PackID
	// CRC and Size are those of the value with its envelope; Size is in bytes.
	CRC  uint32
	Size uint32
}

// Snapshot describes a store between two commits.
type Snapshot struct {
	// Packs are those from the requested id on, in order of ids.
	Packs []PackInfo
	// Complete is set if Values and State have been copied too.
	Complete bool
	// Values are the values of Packs, and State that of all entries in name order, all
	// with their envelopes.
	Values [][]byte
	State  []Entry
	// PackBytes is the size of all packs of the store, not only those listed.
	PackBytes uint64
	// Fingerprint is that of all packs and the state, as the catalogue has it.
	Fingerprint Fingerprint
}

// Fingerprint is a digest of packs and state. Two stores with the same content have the same
// fingerprint. The zero value is that of an empty store.
type Fingerprint struct{ packs, state fingerprint }

// FingerprintLen is the length of an encoded fingerprint in bytes.
const FingerprintLen = 2 * fingerprintLen

// Encode returns the fingerprint as FORMAT.md describes it: that of the packs, then that of
// the state.
func (f Fingerprint) Encode() []byte { return f.state.append(f.packs.append(nil)) }

// ParseFingerprint is the inverse of Encode.
func ParseFingerprint(b []byte) (Fingerprint, error) {
	if len(b) != FingerprintLen {
		return Fingerprint{}, fmt.Errorf("backend: fingerprint of %d bytes, want %d", len(b), FingerprintLen)
	}
	return Fingerprint{parseFingerprint(b), parseFingerprint(b[fingerprintLen:])}, nil
}

// AddPack adds a pack.
func (f *Fingerprint) AddPack(p PackInfo) { f.packs.add(packTerm(p.ID, p.CRC), p.Size) }

// AddState adds the value of a state entry that OpenState has checked.
func (f *Fingerprint) AddState(name string, value []byte) {
	_, crc, err := openValue(stateKey(name), value)
	if err != nil {
		panic("backend: state was not checked: " + err.Error())
	}
	f.state.add(stateTerm(name, crc), uint32(len(value)))
}

// String describes a fingerprint for an error text.
func (f Fingerprint) String() string {
	return fmt.Sprintf("%d packs of %d bytes (%016x), %d state entries of %d bytes (%016x)",
		f.packs.count, f.packs.bytes, f.packs.sum, f.state.count, f.state.bytes, f.state.sum)
}

// OpenPack checks the value of a pack, with its envelope. The content shares memory with
// value. The error is a *CorruptError that names the pack, or ErrNewer.
func OpenPack(id PackID, value []byte) (content []byte, info PackInfo, err error) {
	if !id.valid() {
		return nil, PackInfo{}, &CorruptError{Pack: id, Reason: "id is out of range"}
	}
	content, crc, err := openValue(packKey(id), value)
	if errors.Is(err, ErrNewer) {
		return nil, PackInfo{}, err
	}
	if err != nil {
		return nil, PackInfo{}, &CorruptError{Pack: id, Reason: err.Error()}
	}
	return content, PackInfo{ID: id, CRC: crc, Size: uint32(len(value))}, nil
}

// OpenState is OpenPack for a state entry. Its *CorruptError names the entry.
func OpenState(name string, value []byte) (content []byte, err error) {
	if name == "" || len(name) > maxNameLen {
		return nil, &CorruptError{Reason: fmt.Sprintf("state has a name of %d bytes", len(name))}
	}
	content, _, err = openValue(stateKey(name), value)
	if errors.Is(err, ErrNewer) {
		return nil, err
	}
	if err != nil {
		return nil, &CorruptError{Reason: fmt.Sprintf("state %q: %v", name, err)}
	}
	return content, nil
}

// Snapshot implements Store.
func (s *store) Snapshot(from PackID, copyBytes int64) (*Snapshot, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	snap, err := s.takeSnapshot(from, copyBytes)
	if err != nil {
		return nil, err
	}
	snap.sort() // without the lock: there may be millions
	return snap, nil
}

func (s *store) takeSnapshot(from PackID, copyBytes int64) (*Snapshot, error) {
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.failed(); err != nil {
		return nil, err
	}
	snap := s.table.snapshot(from)
	if !snap.fits(copyBytes) {
		return snap, nil
	}
	snap.sort()
	for _, p := range snap.Packs {
		value, err := s.load(p.ID, nil)
		if err != nil {
			return nil, err
		}
		snap.Values = append(snap.Values, value)
	}
	for _, name := range s.table.entryNames() {
		value, err := s.loadState(name)
		if err != nil {
			return nil, err
		}
		snap.State = append(snap.State, Entry{Key: name, Value: value})
	}
	snap.Complete = true
	return snap, nil
}

// snapshot lists the packs from an id on, in no order.
func (t *table) snapshot(from PackID) *Snapshot {
	t.mu.RLock()
	defer t.mu.RUnlock()
	snap := &Snapshot{PackBytes: t.cat.packs.bytes, Fingerprint: Fingerprint{t.cat.packs, t.cat.state}}
	for id, m := range t.packs {
		if id.Compare(from) >= 0 {
			snap.Packs = append(snap.Packs, PackInfo{ID: id, CRC: m.crc, Size: m.size})
		}
	}
	return snap
}

// Bytes returns how many bytes the values of the listed packs have.
func (s *Snapshot) Bytes() (n int64) {
	for _, p := range s.Packs {
		n += int64(p.Size)
	}
	return n
}

func (s *Snapshot) sort() {
	slices.SortFunc(s.Packs, func(a, b PackInfo) int { return a.ID.Compare(b.ID) })
}

// fits reports whether the values of the listed packs have fewer than limit bytes.
func (s *Snapshot) fits(limit int64) bool { return s.Bytes() < limit }

// LoadStored implements Store.
func (s *store) LoadStored(p PackInfo, buf []byte) ([]byte, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	want := meta{crc: p.CRC, size: p.Size}
	if e := s.table.expect(p.ID); !e.accepts(want) {
		return nil, fmt.Errorf("%w: %s", ErrChanged, p.ID)
	}
	value, err := s.load(p.ID, buf)
	if err != nil {
		if !s.table.expect(p.ID).accepts(want) {
			err = fmt.Errorf("%w: %s", ErrChanged, p.ID)
		}
		return nil, err
	}
	return value, p.check(value)
}

// check returns ErrChanged if a value that was read and checked is not the one listed.
func (p PackInfo) check(value []byte) error {
	if _, info, err := OpenPack(p.ID, value); err != nil || info != p {
		return fmt.Errorf("%w: %s", ErrChanged, p.ID)
	}
	return nil
}

// Snapshot implements Store.
func (m *Memory) Snapshot(from PackID, copyBytes int64) (*Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if m.failure != nil {
		return nil, m.failure
	}
	snap := new(Snapshot)
	for id, p := range m.disk.packs {
		info := PackInfo{ID: id, CRC: p.crc, Size: uint32(len(p.value))}
		snap.PackBytes += uint64(info.Size)
		snap.Fingerprint.AddPack(info)
		if id.Compare(from) >= 0 {
			snap.Packs = append(snap.Packs, info)
		}
	}
	snap.sort()
	for name, content := range m.disk.state {
		value, _ := appendValue(nil, stateKey(name), content)
		snap.Fingerprint.AddState(name, value)
		snap.State = append(snap.State, Entry{Key: name, Value: value})
	}
	if !snap.fits(copyBytes) {
		snap.State = nil
		return snap, nil
	}
	slices.SortFunc(snap.State, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
	for _, p := range snap.Packs {
		if _, err := m.disk.load(p.ID); err != nil {
			return nil, err
		}
		snap.Values = append(snap.Values, slices.Clone(m.disk.packs[p.ID].value))
	}
	snap.Complete = true
	return snap, nil
}

// LoadStored implements Store.
func (m *Memory) LoadStored(p PackInfo, buf []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	have, ok := m.disk.packs[p.ID]
	if !ok || have.crc != p.CRC {
		return nil, fmt.Errorf("%w: %s", ErrChanged, p.ID)
	}
	if _, err := m.disk.load(p.ID); err != nil {
		return nil, err
	}
	return append(buf[:0], have.value...), nil
}

// SamePacks reports whether the packs are the same, whatever the state is.
func (f Fingerprint) SamePacks(g Fingerprint) bool { return f.packs == g.packs }
