package backend

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Memory is a Store in memory with the semantics of the one on disk, for tests
// of what stands on it. It can be made to fail and to lose or alter packs.
type Memory struct {
	mu      sync.Mutex
	limits  limits
	disk    *memoryDisk
	closed  bool
	failure error
	fault   memoryFault
	garbage uint64
}

// memoryDisk outlives the store, as a folder does.
type memoryDisk struct {
	packs map[PackID]memoryPack
	state map[string][]byte
}

// memoryPack is a pack as stored and the checksum the catalogue has for it.
type memoryPack struct {
	value []byte // envelope and content; nil once dropped
	crc   uint32
}

// memoryFault is what happens to a Commit to come.
type memoryFault struct {
	in    int // Commits until it happens; zero is none
	after int // transactions that are made durable before
	cause error
}

// memoryLimits are those of the store on disk with its default sizes.
var memoryLimits = limits{entries: 6500, bytes: 600 << 10, logBytes: maxLogBytes, packBytes: defaultValueLogBytes / 2}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{limits: memoryLimits, disk: &memoryDisk{
		packs: make(map[PackID]memoryPack),
		state: make(map[string][]byte),
	}}
}

// Reopen returns a store over what is durable in m, as after a crash or a
// restart; m itself is closed. Like Open it refuses a pack that was damaged.
func (m *Memory) Reopen() (*Memory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, id := range m.disk.ids() {
		if _, err := m.disk.load(id); err != nil {
			return nil, err
		}
	}
	return &Memory{limits: m.limits, disk: m.disk}, nil
}

// FailCommit makes the n-th Commit from now (1 is the next) fail with cause
// after the first done transactions of it have become durable. The transactions
// of a batch are its packs one by one, then its state, then its deletions one by
// one, as if the limits on disk split it as finely as they may.
func (m *Memory) FailCommit(n, done int, cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = memoryFault{in: n, after: done, cause: cause}
}

// Drop loses a pack behind the catalogue's back.
func (m *Memory) Drop(id PackID) { m.damage(id, func(p *memoryPack) { p.value = nil }) }

// Corrupt flips one bit of a stored pack.
func (m *Memory) Corrupt(id PackID) {
	m.damage(id, func(p *memoryPack) {
		p.value = slices.Clone(p.value)
		p.value[len(p.value)-1] ^= 1
	})
}

func (m *Memory) damage(id PackID, fn func(*memoryPack)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.disk.packs[id]
	if !ok {
		panic(fmt.Sprintf("backend: memory: no pack %s to damage", id))
	}
	fn(&p)
	m.disk.packs[id] = p
}

// Commit implements Store.
func (m *Memory) Commit(b Batch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if m.failure != nil {
		return m.failure
	}
	if _, err := planBatch(b, m.limits); err != nil {
		return err
	}
	left := -1
	if m.fault.in > 0 {
		if m.fault.in--; m.fault.in == 0 {
			left = m.fault.after
		}
	}
	for _, st := range fineSteps(b) {
		if left == 0 {
			break
		}
		left--
		m.apply(st)
	}
	if m.fault.cause != nil && m.fault.in == 0 {
		m.failure = fmt.Errorf("%w: %w", ErrFailed, m.fault.cause)
		return m.failure
	}
	return nil
}

// fineSteps splits a batch as finely as a store may.
func fineSteps(b Batch) (steps []step) {
	for _, p := range b.Put {
		steps = append(steps, step{Put: []Pack{p}})
	}
	if len(b.Set)+len(b.Unset) > 0 {
		steps = append(steps, step{Set: b.Set, Unset: b.Unset})
	}
	for _, id := range b.Delete {
		steps = append(steps, step{Delete: []PackID{id}})
	}
	return steps
}

func (m *Memory) apply(st step) {
	for _, p := range st.Put {
		value, crc := appendValue(nil, packKey(p.ID), p.Parts...)
		m.garbage += uint64(len(m.disk.packs[p.ID].value))
		m.disk.packs[p.ID] = memoryPack{value: value, crc: crc}
	}
	for _, e := range st.Set {
		m.disk.state[e.Key] = slices.Clone(e.Value)
	}
	for _, name := range st.Unset {
		delete(m.disk.state, name)
	}
	for _, id := range st.Delete {
		m.garbage += uint64(len(m.disk.packs[id].value))
		delete(m.disk.packs, id)
	}
}

// load checks a pack and returns its content, which must not be changed.
func (d *memoryDisk) load(id PackID) ([]byte, error) {
	p, ok := d.packs[id]
	if !ok {
		return nil, &CorruptError{Pack: id, Reason: "pack is not in the catalogue"}
	}
	if p.value == nil {
		return nil, &CorruptError{Pack: id, Reason: "pack is missing"}
	}
	content, crc, err := openValue(packKey(id), p.value)
	if err != nil {
		return nil, &CorruptError{Pack: id, Reason: err.Error()}
	}
	if crc != p.crc {
		return nil, &CorruptError{Pack: id, Reason: "pack is not the one in the catalogue"}
	}
	return content, nil
}

func (d *memoryDisk) ids() []PackID {
	return slices.SortedFunc(maps.Keys(d.packs), PackID.Compare)
}

// Load implements Store.
func (m *Memory) Load(id PackID) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	content, err := m.disk.load(id)
	return append([]byte{}, content...), err
}

// State implements Store.
func (m *Memory) State(fn func(Entry) error) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ErrClosed
	}
	var entries []Entry
	for _, name := range slices.Sorted(maps.Keys(m.disk.state)) {
		entries = append(entries, Entry{Key: name, Value: append([]byte{}, m.disk.state[name]...)})
	}
	m.mu.Unlock()
	for _, e := range entries {
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// Scan implements Store.
func (m *Memory) Scan(fn func(PackID, []byte) error) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ErrClosed
	}
	ids := m.disk.ids()
	m.mu.Unlock()
	for _, id := range ids {
		value, ok, err := m.scanOne(id)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := fn(id, value); err != nil {
			return err
		}
	}
	return nil
}

func (m *Memory) scanOne(id PackID) (value []byte, ok bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, false, ErrClosed
	}
	if _, ok := m.disk.packs[id]; !ok {
		return nil, false, nil
	}
	value, err = m.disk.load(id)
	return value, err == nil, err
}

// Sizes implements Store. Allocated are the packs and the garbage.
func (m *Memory) Sizes() Sizes {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Sizes{Packs: len(m.disk.packs), GarbageBytes: m.garbage}
	for _, p := range m.disk.packs {
		s.PackBytes += uint64(len(p.value))
	}
	s.AllocatedBytes = s.PackBytes + m.garbage
	return s
}

// Reclaim implements Store.
func (m *Memory) Reclaim(ctx context.Context, budget Budget) (ReclaimReport, error) {
	if _, err := budget.withDefaults(); err != nil {
		return ReclaimReport{}, err
	}
	before := m.Sizes().AllocatedBytes
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ReclaimReport{}, ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return ReclaimReport{Before: before, After: before}, err
	}
	after := before - m.garbage
	m.garbage = 0
	return ReclaimReport{Before: before, After: after, Work: time.Nanosecond, Took: time.Nanosecond}, m.failure
}

// Close implements Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	m.closed = true
	return nil
}

var _ Store = (*Memory)(nil)
