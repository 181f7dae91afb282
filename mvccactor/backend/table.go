package backend

import (
	"slices"
	"strings"
	"sync"
)

// table is what memory knows of the stored values. It takes about 50 bytes per
// pack.
type table struct {
	mu    sync.RWMutex
	packs map[PackID]meta
	names map[string]meta
	cat   catalogue
	// next holds the changes of the transaction that is being committed: badger
	// shows its values before the commit returns. A nil entry is a deletion.
	next map[PackID]*meta
	// garbage estimates replaced and deleted pack bytes.
	garbage uint64
}

func newTable() *table {
	return &table{packs: make(map[PackID]meta), names: make(map[string]meta)}
}

// wanted says which values a read of a pack may return.
type wanted struct {
	has     bool
	now     meta
	pending bool
	then    meta
	gone    bool // the pending change is a deletion
}

func (w wanted) accepts(m meta) bool {
	return w.has && m == w.now || w.pending && !w.gone && m == w.then
}

func (w wanted) exists() bool { return w.has || w.pending && !w.gone }

func (t *table) want(id PackID) (w wanted) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	w.now, w.has = t.packs[id]
	if m, ok := t.next[id]; ok {
		w.pending, w.gone = true, m == nil
		if m != nil {
			w.then = *m
		}
	}
	return w
}

// change is the effect of one transaction.
type change struct {
	packs map[PackID]*meta
	names map[string]*meta
	cat   catalogue
}

// begin announces a change that readers may see from now on.
func (t *table) begin(c change) {
	t.mu.Lock()
	t.next = c.packs
	t.mu.Unlock()
}

// finish makes an announced change the present.
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

// after returns the catalogue that holds once the packs and names of c are
// changed.
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

// ids returns the ids of all packs in order.
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

// entryNames returns the names of all state in order.
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
