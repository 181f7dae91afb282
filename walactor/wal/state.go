package wal

import "fmt"

type hardState struct{ term, vote, commit uint64 }

type markState struct {
	index, term uint64
	conf        []byte // encoded conf state, nil if there is none; immutable
}

// termRun says that entries from first on have the given term, up to the
// next run.
type termRun struct{ first, term uint64 }

// state is what the records so far amount to, but for the entries' data. The
// same rules run at append, where breaking one is a bug of the caller, and at
// replay, where it is corruption.
//
// Invariants: mark.index <= hard.commit <= last.
type state struct {
	hard    hardState
	hasHard bool // a hard state has been recorded
	mark    markState
	last    uint64 // last index of the log
	first   uint64 // the segments hold entries first..last; last+1 if there are none
	// runs gives the terms from the mark to last. It is never empty. Terms
	// before runs[0].first are unknown: they lie below the mark or in
	// segments trimmed away. Its length is bounded by the number of
	// elections since the mark.
	runs []termRun
}

// newState is the empty log.
func newState() state { return state{first: 1, runs: []termRun{{}}} }

// stateAt is the log where a segment begins.
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

// entry applies "index i discards all at or above i".
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
		return fmt.Errorf("entry %d has term %d, after term %d", index, term, s.lastTerm())
	}
	s.last = index
	return nil
}

// truncate discards the entries at and above index, which the caller replaces
// at once: runs may be empty until then.
func (s *state) truncate(index uint64) {
	n := len(s.runs)
	for n > 0 && s.runs[n-1].first >= index {
		n--
	}
	s.runs = s.runs[:n]
	s.last = index - 1
}

// replaces tells whether a mark names a snapshot that the log does not lead
// up to, as one from the leader does: the log is then discarded.
func (s *state) replaces(index, term uint64) bool {
	if index > s.last {
		return true
	}
	have, known := s.termAt(index)
	return known && have != term && index > s.hard.commit
}

// setMark records a snapshot mark. The mark stands for applied state, thus
// raises the commit index.
func (s *state) setMark(m markState, replace bool) error {
	have, known := s.termAt(m.index)
	switch {
	case m.index < s.mark.index:
		return fmt.Errorf("mark %d goes back from mark %d", m.index, s.mark.index)
	case m.index == s.mark.index && m.term != s.mark.term:
		return fmt.Errorf("mark %d has term %d, before it was %d", m.index, m.term, s.mark.term)
	case replace && m.index <= s.hard.commit:
		return fmt.Errorf("mark %d replaces a log committed up to %d", m.index, s.hard.commit)
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

// setHard records a hard state.
func (s *state) setHard(h hardState) error {
	old := s.hard
	switch {
	case h.term < old.term:
		return fmt.Errorf("term goes back from %d to %d", old.term, h.term)
	case h.term == old.term && old.vote != 0 && h.vote != old.vote:
		return fmt.Errorf("vote of term %d changes from %x to %x", h.term, old.vote, h.vote)
	case h.commit < old.commit:
		return fmt.Errorf("commit index goes back from %d to %d", old.commit, h.commit)
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
