package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// report is the result of verify. Scripts read its JSON form: fields may be added, but
// never changed or removed.
type report struct {
	DataDir  string          `json:"data_dir"`
	Good     bool            `json:"good"`
	Problems []problem       `json:"problems"`
	Omitted  int             `json:"problems_omitted,omitempty"`
	Notes    []string        `json:"notes"` // remnants of a crash, which the next start repairs
	Identity *identityReport `json:"identity,omitempty"`
	Log      *logReport      `json:"log,omitempty"`
	Store    *storeReport    `json:"store,omitempty"`
}

// area is the part of the data that a problem is in.
type area string

const (
	areaIdentity area = "identity"
	areaLog      area = "log"
	areaStore    area = "store"
	areaState    area = "state"    // the message in the store that describes its content
	areaIndex    area = "index"    // the records in packs
	areaTogether area = "together" // two of the above do not belong together
)

// problem is one piece of damage. Fields that are not known are empty.
type problem struct {
	Area   area   `json:"area"`
	File   string `json:"file,omitempty"` // relative to the data directory
	Offset *int64 `json:"offset,omitempty"`
	Pack   string `json:"pack,omitempty"`
	Record string `json:"record,omitempty"` // revision
	Reason string `json:"reason"`
}

// String names the place before the reason.
func (p problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Offset != nil {
			fmt.Fprintf(&b, " at offset %d", *p.Offset)
		}
		b.WriteString(": ")
	}
	if p.Pack != "" {
		fmt.Fprintf(&b, "pack %s: ", p.Pack)
	}
	if p.Record != "" {
		fmt.Fprintf(&b, "record %s: ", p.Record)
	}
	return b.String() + p.Reason
}

type identityReport struct {
	ClusterID string   `json:"cluster_id"` // hexadecimal, as in all other output
	MemberID  string   `json:"member_id"`
	Name      string   `json:"name"`
	PeerURLs  []string `json:"peer_urls"`
}

type logReport struct {
	Folder      string           `json:"folder"`
	Segments    int              `json:"segments"`
	Bytes       int64            `json:"bytes"`
	UsedBytes   int64            `json:"used_bytes"`
	FirstIndex  uint64           `json:"first_index"` // last_index + 1 if there are no entries
	LastIndex   uint64           `json:"last_index"`
	LastTerm    uint64           `json:"last_term,omitempty"`
	MarkIndex   uint64           `json:"mark_index"`
	MarkTerm    uint64           `json:"mark_term"`
	HardState   *hardStateReport `json:"hard_state,omitempty"`
	TornAt      string           `json:"torn_file,omitempty"`
	TornOffset  int64            `json:"torn_offset,omitempty"`
	TornBytes   int64            `json:"torn_bytes,omitempty"`
	whole       bool             // read to its end
	clusterID   uint64
	memberID    uint64
	appliedTerm uint64 // term of the entry at the store's applied index; 0 if the log does not have it
}

type hardStateReport struct {
	Term   uint64 `json:"term"`
	Vote   string `json:"vote"`
	Commit uint64 `json:"commit"`
}

type storeReport struct {
	Folder          string `json:"folder"`
	Packs           int    `json:"packs"`
	PackBytes       uint64 `json:"pack_bytes"`
	Keys            int    `json:"keys"`
	LiveBytes       int64  `json:"live_bytes"`
	Revision        int64  `json:"revision"`
	CompactRevision int64  `json:"compact_revision"` // -1 before the first compaction
	AppliedIndex    uint64 `json:"applied_index"`
	AppliedTerm     uint64 `json:"applied_term"`
}

// hexID formats an id as etcd's tools do.
func hexID(n uint64) string { return fmt.Sprintf("%x", n) }

// writeJSON prints the report as one object.
func (r *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// writeText prints the report for an operator.
func (r *report) writeText(w io.Writer) error {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-14s%s\n", label, fmt.Sprintf(format, args...))
	}
	line("directory", "%s", r.DataDir)
	if i := r.Identity; i != nil {
		line("member", "%s %q of cluster %s, peer URLs %s", i.MemberID, i.Name, i.ClusterID, strings.Join(i.PeerURLs, ","))
	}
	if l := r.Log; l != nil {
		line("log", "%s: %d segments, %d bytes, %d in use", l.Folder, l.Segments, l.Bytes, l.UsedBytes)
		if l.LastIndex < l.FirstIndex {
			line("  entries", "none; the next one is %d", l.FirstIndex)
		} else {
			line("  entries", "%d to %d, last term %d", l.FirstIndex, l.LastIndex, l.LastTerm)
		}
		line("  mark", "index %d, term %d", l.MarkIndex, l.MarkTerm)
		if h := l.HardState; h != nil {
			line("  hard state", "term %d, vote %s, commit %d", h.Term, h.Vote, h.Commit)
		}
	}
	if s := r.Store; s != nil {
		line("store", "%s: %d packs, %d bytes", s.Folder, s.Packs, s.PackBytes)
		line("  keyspace", "%d keys, %d bytes live, revision %d, %s", s.Keys, s.LiveBytes, s.Revision, s.compacted())
		line("  applied", "index %d, term %d", s.AppliedIndex, s.AppliedTerm)
		if l := r.Log; l != nil && l.whole && l.LastIndex > s.AppliedIndex {
			line("", "%d entries of the log are not in the store; a start applies them", l.LastIndex-s.AppliedIndex)
		}
	}
	for _, n := range r.Notes {
		line("to repair", "%s", n)
	}
	if r.Good {
		line("result", "good")
	} else {
		line("result", "DAMAGED, problems: %d", len(r.Problems)+r.Omitted)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "  %-9s %s\n", p.Area, p)
	}
	if r.Omitted > 0 {
		fmt.Fprintf(&b, "  and %d more\n", r.Omitted)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s *storeReport) compacted() string {
	if s.CompactRevision < 0 {
		return "never compacted"
	}
	return fmt.Sprintf("compacted at %d", s.CompactRevision)
}
