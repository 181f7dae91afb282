package watch

import (
	"maps"
	"slices"
)

// Cancellation by the server, of watchers that lag behind and cannot catch up, and of watchers
// whose client may no longer read their range (Revoke).
//
// A turn of reading finds that a compaction overtook the oldest laggards (Compacted),
// or that the log cannot be read (Fail). Their clients are told; the watchers leave
// their groups. As in etcd their ids stay taken, and hold up manual progress, until
// the client cancels them too.

// Compacted cancels the lagging watchers that lack revisions below one that was
// compacted, except fresh ones that lack nothing below a pinned revision. Their ids
// stay taken until the client cancels them, as in etcd.
func (t *Table) Compacted(revision, pinned int64, emit Emit) error {
	return t.fail(func(w *watcher) bool { return w.next < revision && !(w.fresh && w.next >= pinned) },
		Response{CompactRevision: revision}, emit)
}

// Fail cancels all lagging watchers, because the revisions they lack cannot be read.
func (t *Table) Fail(reason string, present int64, emit Emit) error {
	return t.fail(func(*watcher) bool { return true }, Response{Revision: present, CancelReason: reason}, emit)
}

// Revoke cancels the watchers of all ranges for which refused returns a reason: their client may
// no longer read them. Unlike after a compaction, their ids are free again.
func (t *Table) Revoke(refused func(Range) string, present int64, emit Emit) error {
	reasons := map[Range]string{}
	for key := range t.groups {
		if reason := refused(key.Range); reason != "" {
			reasons[key.Range] = reason
		}
	}
	if len(reasons) == 0 {
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(t.watchers)) {
		w := t.watchers[id]
		if w.group == nil {
			continue // cancelled already
		}
		reason := reasons[w.group.Range]
		if reason == "" {
			continue
		}
		resp := t.Cancel(id, present)
		resp.CancelReason = reason
		if err := emit(resp); err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) fail(affected func(*watcher) bool, resp Response, emit Emit) error {
	for _, id := range slices.Sorted(maps.Keys(t.watchers)) {
		w := t.watchers[id]
		if !w.lagging || !affected(w) {
			continue
		}
		t.removeFromGroup(w)
		t.compacted++
		resp.WatchID, resp.Canceled = id, true
		if err := emit(&resp); err != nil {
			return err
		}
	}
	return nil
}
