package wal

import "fmt"

// hardState is raft's hard state.
type hardState struct{ term, vote, commit uint64 }

// markState is a snapshot mark.
type markState struct {
	index, term uint64
	conf        []byte // encoded conf state, nil if there is none; immutable
}

// termRun gives the term of the entries from first up to the next run.
type termRun struct{ first, term uint64 }

// state is the result of applying records in order, without the data of entries. The
// methods return an error if a record breaks a rule of FORMAT.md: at an append that is
// a bug of the caller, at replay it is corruption.
//
// Invariant: mark.index <= hard.commit <= last.
type state struct {
	// hard is the latest hard state. A mark raises hard.commit too.
	hard hardState
	// hasHard is set by the first hard state and never cleared.
	hasHard bool
	// mark is the latest snapshot mark, zero before the first one.
	mark markState
	// last is the index of the last entry, or of the mark if no entry follows it.
	last uint64
	// first is the index of the oldest entry in the segments, last+1 if there is
	// none. Trim and a mark that discards the log raise it.
	first uint64
	// runs gives the terms of the entries from the mark to last. It is never empty
	// between records. Terms before runs[0].first are unknown: those entries are
	// below the mark, or in segments that were trimmed. Its length is bounded by the
	// number of elections since the mark.
	runs []termRun
}

// newState returns the state of an empty log.
func newState() state { return state{first: 1, runs: []termRun{{}}} }

// stateAt returns the state at the start of a segment.
func stateAt(h *segmentHeader) state {
	return state{hard: h.hard, hasHard: h.hasHard, mark: h.mark, last: h.first - 1, first: h.first,
		runs: []termRun{{h.first - 1, h.lastTerm}}}
}

func (s *state) lastTerm() uint64 { return s.runs[len(s.runs)-1].term }

// termAt returns the term of entry i, if it is known.
func (s *state) termAt(i uint64) (uint64, bool) {
	if i > s.last {
		return 0, false
	}
	for j := len(s.runs) - 1; j >= 0; j-- {
		if s.runs[j].first <= i {
			return s.runs[j].term, true
		}
	}
	return 0, false
}

// entry applies an entry. It discards all entries at or above its index.
func (s *state) entry(index, term uint64) error {
	switch {
	case index > s.last+1:
		return fmt.Errorf("entry %d leaves a gap after %d", index, s.last)
	case index <= s.hard.commit:
		return fmt.Errorf("entry %d truncates below commit index %d", index, s.hard.commit)
	case index <= s.last:
		s.truncate(index)
	}
	if len(s.runs) == 0 || term > s.lastTerm() {
		s.runs = append(s.runs, termRun{index, term})
	} else if term < s.lastTerm() {
		return fmt.Errorf("entry %d has term %d, below term %d of the entry before", index, term, s.lastTerm())
	}
	s.last = index
	return nil
}

// truncate discards the entries at and above index. It may leave runs empty, so the
// caller must add an entry next.
func (s *state) truncate(index uint64) {
	n := len(s.runs)
	for n > 0 && s.runs[n-1].first >= index {
		n--
	}
	s.runs = s.runs[:n]
	s.last = index - 1
}

// replaces reports whether a mark discards the log: the log does not contain the entry
// that the mark names, as after a snapshot from the leader.
func (s *state) replaces(index, term uint64) bool {
	if index > s.last {
		return true
	}
	have, known := s.termAt(index)
	return known && have != term && index > s.hard.commit
}

// setMark applies a snapshot mark and raises the commit index to it. If replace is set,
// the mark discards the log.
func (s *state) setMark(m markState, replace bool) error {
	have, known := s.termAt(m.index)
	switch {
	case m.index < s.mark.index:
		return fmt.Errorf("mark %d is below the previous mark %d", m.index, s.mark.index)
	case m.index == s.mark.index && m.term != s.mark.term:
		return fmt.Errorf("mark %d has term %d, previously term %d", m.index, m.term, s.mark.term)
	case replace && m.index <= s.hard.commit:
		return fmt.Errorf("mark %d discards a log that is committed up to %d", m.index, s.hard.commit)
	case !replace && m.index > s.last:
		return fmt.Errorf("mark %d is past the last index %d", m.index, s.last)
	case !replace && known && have != m.term:
		return fmt.Errorf("mark %d has term %d, the entry has term %d", m.index, m.term, have)
	}
	s.mark = m
	s.hard.commit = max(s.hard.commit, m.index)
	if replace {
		s.last, s.first = m.index, m.index+1
		s.runs = append(s.runs[:0], termRun{m.index, m.term})
		return nil
	}
	for len(s.runs) > 1 && s.runs[1].first <= m.index {
		s.runs = s.runs[1:]
	}
	return nil
}

// setHard applies a hard state.
func (s *state) setHard(h hardState) error {
	old := s.hard
	switch {
	case h.term < old.term:
		return fmt.Errorf("term decreases from %d to %d", old.term, h.term)
	case h.term == old.term && old.vote != 0 && h.vote != old.vote:
		return fmt.Errorf("vote of term %d changes from %x to %x", h.term, old.vote, h.vote)
	case h.commit < old.commit:
		return fmt.Errorf("commit index decreases from %d to %d", old.commit, h.commit)
	case h.commit > s.last:
		return fmt.Errorf("commit index %d is past the last index %d", h.commit, s.last)
	}
	s.hard, s.hasHard = h, true
	return nil
}

// record applies a decoded record.
func (s *state) record(r *Record) error {
	switch r.Kind {
	case KindEntry:
		return s.entry(r.Index, r.Term)
	case KindHardState:
		return s.setHard(hardState{r.Term, r.Vote, r.Commit})
	case KindMark:
		m := markState{index: r.Index, term: r.Term}
		if r.Conf != nil {
			m.conf = append([]byte(nil), r.Conf...)
		}
		return s.setMark(m, r.Replaces)
	}
	return nil
}
