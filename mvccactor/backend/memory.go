package backend

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Memory is a Store in memory with the semantics of the one on disk, for tests. A test can
// make it fail, and make it lose or alter packs.
type Memory struct {
	mu      sync.Mutex
	limits  limits
	disk    *memoryDisk
	closed  bool
	failure error
	fault   memoryFault
	before  func() error // of BeforeEach
	garbage uint64
}

// memoryDisk is the durable content. It outlives the Memory, as a directory does.
type memoryDisk struct {
	packs map[PackID]memoryPack
	state map[string][]byte
}

// memoryPack is a pack as it is stored, and its checksum in the catalogue.
type memoryPack struct {
	value []byte // envelope and content; nil after Drop
	crc   uint32
}

// memoryFault makes a later Commit fail. FailCommit sets it.
type memoryFault struct {
	in    int // the Commit that fails, counted from 1 and down; zero is none
	after int // number of its transactions that become durable
	cause error
}

// memoryLimits are about those of the store on disk with its default sizes.
var memoryLimits = limits{entries: 6500, bytes: 600 << 10, logBytes: maxLogBytes, packBytes: defaultValueLogBytes / 2}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{limits: memoryLimits, disk: &memoryDisk{
		packs: make(map[PackID]memoryPack),
		state: make(map[string][]byte),
	}}
}

// Reopen closes m and returns a store with what is durable in it, as after a crash or a
// restart. Like Open it calls the Visit functions of cfg, whose other fields have no effect,
// and fails if a pack is damaged.
func (m *Memory) Reopen(cfg Config) (*Memory, error) {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	again := &Memory{limits: m.limits, disk: m.disk}
	if cfg.VisitState != nil {
		if err := again.State(cfg.VisitState); err != nil {
			return nil, err
		}
	}
	visit := cfg.VisitPack
	if visit == nil {
		visit = func(PackID, []byte) error { return nil }
	}
	if err := again.Scan(visit); err != nil {
		return nil, err
	}
	return again, nil
}

// BeforeEach makes every Commit call fn before each of its transactions, which are those of
// FailCommit, and once more after the last. If fn returns an error, the store fails with it,
// and what follows is not durable. fn must not use the store.
func (m *Memory) BeforeEach(fn func() error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before = fn
}

// FailCommit makes the nth Commit from now (1 is the next) fail with cause, after its first
// done transactions have become durable. The transactions of a batch are its packs one by
// one, then its state, then its deletions one by one: the finest split that a store on disk
// may make.
func (m *Memory) FailCommit(n, done int, cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = memoryFault{in: n, after: done, cause: cause}
}

// Drop removes a pack and leaves it in the catalogue.
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
	if cause := m.commit(fineSteps(b)); cause != nil {
		m.failure = fmt.Errorf("%w: %w", ErrFailed, cause)
	}
	return m.failure
}

// commit makes one transaction after another durable, until one is to fail.
func (m *Memory) commit(steps []step) error {
	left := -1
	if m.fault.in > 0 {
		if m.fault.in--; m.fault.in == 0 {
			left = m.fault.after
		}
	}
	for _, st := range steps {
		if left == 0 {
			break
		}
		left--
		if err := m.step(); err != nil {
			return err
		}
		m.apply(st)
	}
	if m.fault.cause != nil && m.fault.in == 0 {
		return m.fault.cause
	}
	return m.step()
}

func (m *Memory) step() error {
	if m.before == nil {
		return nil
	}
	return m.before()
}

// fineSteps splits a batch into the smallest transactions that a store may make.
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

// load checks a pack and returns its content. The caller must not change it.
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
		return nil, &CorruptError{Pack: id, Reason: "pack has another checksum in the catalogue"}
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

// Sizes implements Store. AllocatedBytes is the size of the packs and the garbage.
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
