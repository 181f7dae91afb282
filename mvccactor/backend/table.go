package backend

import (
	"slices"
	"strings"
	"sync"
)

// table is the catalogue in memory, with all live values. Readers compare what badger
// returns with it. A transaction is filled against the table, announced by begin, committed,
// and applied by finish.
type table struct {
	mu sync.RWMutex
	// packs and names are the live values, by pack id and by name of the state entry.
	// Open fills them; from then on only finish changes them.
	packs map[PackID]meta
	names map[string]meta
	// cat is the catalogue of the last transaction. It always agrees with packs and
	// names.
	cat catalogue
	// next holds the packs that the transaction in progress changes, with nil for a
	// deletion: badger returns its values before the commit returns. begin sets it,
	// finish clears it. It stays set if the commit fails.
	next map[PackID]*meta
	// garbage is the estimate of Sizes. finish adds the values that become dead; Open
	// and Reclaim set it to what they measure.
	garbage uint64
}

func newTable() *table {
	return &table{packs: make(map[PackID]meta), names: make(map[string]meta)}
}

// expected lists the values that a read of a pack may return.
type expected struct {
	has     bool // the pack is in the table, with the value now
	now     meta
	pending bool // the transaction in progress changes the pack, to the value then
	then    meta
	deleted bool // that change is a deletion
}

// accepts reports whether a read may return the value m.
func (e expected) accepts(m meta) bool {
	return e.has && m == e.now || e.pending && !e.deleted && m == e.then
}

// exists reports whether the pack may exist.
func (e expected) exists() bool { return e.has || e.pending && !e.deleted }

// expect returns the values that a read of a pack may return now.
func (t *table) expect(id PackID) (e expected) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e.now, e.has = t.packs[id]
	if m, ok := t.next[id]; ok {
		e.pending, e.deleted = true, m == nil
		if m != nil {
			e.then = *m
		}
	}
	return e
}

// change is the effect of one transaction. A nil meta is a deletion.
type change struct {
	packs map[PackID]*meta
	names map[string]*meta
	cat   catalogue // after the transaction
}

// begin announces a change. From now on reads may return its values.
func (t *table) begin(c change) {
	t.mu.Lock()
	t.next = c.packs
	t.mu.Unlock()
}

// finish applies an announced change.
func (t *table) finish(c change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, m := range c.packs {
		t.garbage += uint64(t.packs[id].size)
		if m == nil {
			delete(t.packs, id)
		} else {
			t.packs[id] = *m
		}
	}
	for name, m := range c.names {
		if m == nil {
			delete(t.names, name)
		} else {
			t.names[name] = *m
		}
	}
	t.cat = c.cat
	t.next = nil
}

// after returns the catalogue after the packs and names of c are changed.
func (t *table) after(c change, seq uint64, split bool) catalogue {
	t.mu.RLock()
	defer t.mu.RUnlock()
	cat := t.cat
	cat.seq, cat.split = seq, split
	for id, m := range c.packs {
		if old, ok := t.packs[id]; ok {
			cat.packs.remove(packTerm(id, old.crc), old.size)
		}
		if m != nil {
			cat.packs.add(packTerm(id, m.crc), m.size)
		}
	}
	for name, m := range c.names {
		if old, ok := t.names[name]; ok {
			cat.state.remove(stateTerm(name, old.crc), old.size)
		}
		if m != nil {
			cat.state.add(stateTerm(name, m.crc), m.size)
		}
	}
	return cat
}

// ids returns the ids of all packs, in order.
func (t *table) ids() []PackID {
	t.mu.RLock()
	ids := make([]PackID, 0, len(t.packs))
	for id := range t.packs {
		ids = append(ids, id)
	}
	t.mu.RUnlock()
	slices.SortFunc(ids, PackID.Compare)
	return ids
}

// entryNames returns the names of all state entries, in order.
func (t *table) entryNames() []string {
	t.mu.RLock()
	names := make([]string, 0, len(t.names))
	for name := range t.names {
		names = append(names, name)
	}
	t.mu.RUnlock()
	slices.SortFunc(names, strings.Compare)
	return names
}
