package watchactor

import "sync"

// readers lets some streams at a time read from the log, the others in the order in
// which they come. Nobody is blocked: a stream that has to wait goes on with what
// the hub posts, and is reminded when it is its turn. What happened long ago must
// not take the processors from what happens now.
type readers struct {
	mu      sync.Mutex
	free    int
	waiting []*stream // at most all streams
}

// place is where a stream stands with its readers.
type place int

const (
	away    place = iota
	waits         // it will be reminded
	granted       // it has been reminded, or reads
)

// enter tells whether a stream may read now. If not, it waits.
func (r *readers) enter(st *stream) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case st.place == granted:
		return true
	case st.place == waits:
		return false
	case r.free > 0:
		r.free--
		st.place = granted
		return true
	}
	st.place = waits
	r.waiting = append(r.waiting, st)
	return false
}

// leave takes a stream out, wherever it stands.
func (r *readers) leave(st *stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := st.place
	st.place = away
	switch was {
	case waits:
		for i, w := range r.waiting {
			if w == st {
				r.waiting = append(r.waiting[:i], r.waiting[i+1:]...)
				return
			}
		}
	case granted:
		if len(r.waiting) == 0 {
			r.waiting = nil
			r.free++
			return
		}
		next := r.waiting[0]
		r.waiting[0] = nil
		r.waiting = r.waiting[1:]
		next.place = granted
		next.nextTurn() // one that has ended leaves, or has left
	}
}
