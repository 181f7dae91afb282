package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

// errDamaged means that the printed report has problems.
var errDamaged = errors.New("damage was found")

// badEntriesMax is the most undecodable entries of the log that are listed. Entries
// have checksums, so an undecodable one means a bug, for which a few are enough.
const badEntriesMax = 100

func verifyCommand(args []string, stdout io.Writer) error {
	flags, parse := newFlags(stdout)
	walDir := flags.String("wal-dir", "", "directory of the log, if it is not below the data directory")
	asJSON := flags.Bool("json", false, "print the report as JSON")
	format := flags.String("w", "simple", "format of the report: simple or json")
	path, err := parse(args)
	if err != nil {
		return err
	}
	if *format != "simple" && *format != "json" {
		return fmt.Errorf("%w: format %q is neither simple nor json", errUsage, *format)
	}
	rep, err := verify(path, *walDir)
	if err != nil {
		return err
	}
	write := rep.writeText
	if *asJSON || *format == "json" {
		write = rep.writeJSON
	}
	if err := write(stdout); err != nil {
		return err
	}
	if !rep.Good {
		return errDamaged
	}
	return nil
}

// verify checks a data directory. It returns an error if it cannot make a report.
func verify(path, walDir string) (_ *report, err error) {
	d, err := openDataDir(path, walDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	c := &checker{dir: d, report: report{DataDir: path, Problems: []problem{}, Notes: []string{}}}
	c.identity()
	c.log()
	if err := c.choose(); err != nil {
		return nil, err
	}
	if err := c.store(); err != nil {
		return nil, err
	}
	c.entries()
	c.together()
	c.leftovers()
	c.report.Good = len(c.report.Problems) == 0
	return &c.report, nil
}

// checker makes a report, checking one part of the data after another. Damage in one
// part does not prevent the others from being checked.
type checker struct {
	dir        *dataDir
	report     report
	id         *core.Identity   // nil if it cannot be read
	state      *mvccmsg.Durable // nil if it is missing or damaged
	noIdentity bool             // perhaps the first start was interrupted
}

func (c *checker) problem(p problem) { c.report.Problems = append(c.report.Problems, p) }

func (c *checker) note(format string, args ...any) {
	c.report.Notes = append(c.report.Notes, fmt.Sprintf(format, args...))
}

// oneLine returns the text of an error as one line: errors.Join puts in newlines.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", ": ") }

// identity checks the identity file.
func (c *checker) identity() {
	got, err := core.ReadIdentity(wal.OSFS{}, c.dir.Identity)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.noIdentity = true // together and missingStore decide whether that is damage
	case err != nil:
		c.problem(problem{Area: areaIdentity, File: c.dir.name(c.dir.Identity, ""), Reason: oneLine(err)})
	default:
		c.id = &got
		c.report.Identity = &identityReport{ClusterID: hexID(got.ClusterID), MemberID: hexID(got.MemberID),
			Name: got.Name, PeerURLs: got.PeerURLs}
	}
}

// log checks the write-ahead log.
func (c *checker) log() {
	rep, err := wal.Verify(heldFS{}, c.dir.Log)
	var damage *wal.CorruptError
	switch {
	case err == nil:
	case errors.As(err, &damage):
		c.problem(problem{Area: areaLog, File: c.dir.name(c.dir.Log, damage.File), Offset: &damage.Offset, Reason: damage.Reason})
	case errors.Is(err, wal.ErrNotFound):
		c.problem(problem{Area: areaLog, File: c.dir.name(c.dir.Log, ""),
			Reason: "there is no log; if the member runs with --wal-dir, give the same flag"})
		return
	default:
		c.problem(problem{Area: areaLog, File: c.dir.name(c.dir.Log, ""), Reason: "it cannot be checked: " + oneLine(err)})
	}
	if len(rep.Segments) == 0 && err != nil {
		return
	}
	l := &logReport{Folder: c.dir.name(c.dir.Log, ""), Segments: len(rep.Segments), whole: err == nil,
		FirstIndex: rep.FirstIndex, LastIndex: rep.LastIndex, MarkIndex: rep.Mark.Index, MarkTerm: rep.Mark.Term,
		clusterID: rep.ClusterID, memberID: rep.MemberID}
	for _, s := range rep.Segments {
		l.Bytes += s.Bytes
		l.UsedBytes += s.UsedBytes
	}
	if h := rep.HardState; h != nil {
		l.HardState = &hardStateReport{Term: h.GetTerm(), Vote: hexID(h.GetVote()), Commit: h.GetCommit()}
	}
	c.report.Log = l
	if t := rep.Torn; t != nil {
		l.TornAt, l.TornOffset, l.TornBytes = c.dir.name(c.dir.Log, t.File), t.Offset, t.Bytes
		c.note("%s at offset %d: %d bytes of an unfinished write, which a start truncates", l.TornAt, t.Offset, t.Bytes)
	}
	if s := rep.Segments[len(rep.Segments)-1]; l.whole && s.Ended {
		c.note("%s: the segment was ended and the next one not begun; the log continues in this one", c.dir.name(c.dir.Log, s.File))
	}
}

// choose finds the store that a start would open. It is not the one that CURRENT names if the
// installation of a snapshot was interrupted: from the mark in the log on, the snapshot counts.
func (c *checker) choose() error {
	mark := uint64(0)
	if l := c.report.Log; l != nil && l.whole {
		mark = l.MarkIndex
	}
	member := filepath.Dir(c.dir.Identity)
	path, interrupted, err := snapshot.NewStores(wal.OSFS{}, member).Find(mark, appliedIndex)
	switch {
	case c.dir.Current != nil && !interrupted:
		return fmt.Errorf("%s: it is not known which store is the current one: %w", c.dir.path, c.dir.Current)
	case errors.Is(err, backend.ErrInUse):
		return fmt.Errorf("%s: %w", c.dir.path, errInUse)
	case err != nil:
		c.problem(problem{Area: areaStore, File: c.dir.name(c.dir.Store, ""), Reason: "it cannot be checked: " + oneLine(err)})
		return nil
	}
	if interrupted {
		c.note("%s: a snapshot whose installation was interrupted after its mark was written to the log; the next start completes it, and removes %s",
			c.dir.name(path, ""), c.dir.name(c.dir.Store, ""))
	}
	c.dir.Store = path
	return nil
}

// appliedIndex returns the applied index of a store, without changing anything in its folder.
// Errors: those of backend.VerifyWith; a *backend.CorruptError if the index cannot be read.
func appliedIndex(path string) (uint64, error) {
	var d *mvccmsg.Durable
	_, err := backend.VerifyWith(backend.VerifyConfig{Dir: path, VisitState: func(e backend.Entry) error {
		if e.Key != snapshot.StateName {
			return nil
		}
		d = new(mvccmsg.Durable)
		return proto.Unmarshal(e.Value, d)
	}})
	if err == nil && d == nil {
		err = &backend.CorruptError{Reason: "the state cannot be read"}
	}
	return d.GetAppliedIndex(), err
}

// errUnread ends the simulated start in store.
var errUnread = errors.New("the store cannot be read")

// store checks the store and its index by simulating a start: mvccactor opens a store
// that is verified instead of opened. The only error is errInUse.
func (c *checker) store() error {
	var rep *backend.Report
	var verifyErr error
	simulated := &simulatedStore{}
	stateBad := false
	opened, err := c.open(mvccactor.OpenConfig{
		Backend:   backend.Config{Dir: c.dir.Store},
		Published: mvcc.NewPublished(),
		OpenBackend: func(cfg backend.Config) (backend.Store, error) {
			rep, verifyErr = backend.VerifyWith(backend.VerifyConfig{
				Dir: cfg.Dir,
				VisitState: func(e backend.Entry) error {
					err := cfg.VisitState(e)
					stateBad = stateBad || err != nil
					return err
				},
				VisitPack: func(id backend.PackID, value []byte) error {
					if stateBad {
						return nil // which records belong to the store is unknown
					}
					return cfg.VisitPack(id, value)
				},
			})
			if verifyErr != nil || stateBad || !rep.PacksRead {
				return nil, errUnread
			}
			return simulated, nil
		},
	})
	switch {
	case errors.Is(verifyErr, backend.ErrInUse):
		return fmt.Errorf("%s: %w", c.dir.path, errInUse)
	case errors.Is(verifyErr, backend.ErrMissing):
		c.missingStore()
		return nil
	case verifyErr != nil:
		c.problem(problem{Area: areaStore, File: c.dir.name(c.dir.Store, ""), Reason: "it cannot be checked: " + oneLine(verifyErr)})
		return nil
	}
	c.storeFiles(rep)
	if stateBad || !rep.PacksRead {
		c.problem(problem{Area: areaIndex, File: c.dir.name(c.dir.Store, ""), Reason: "packs and index were not checked, because of the damage above"})
	}
	if err != nil {
		if !errors.Is(err, errUnread) {
			c.problem(problem{Area: areaIndex, File: c.dir.name(c.dir.Store, ""), Reason: oneLine(err)})
		}
		return nil
	}
	c.keyspace(rep, opened, simulated)
	return nil
}

// open simulates the start. It turns a panic into an error.
func (c *checker) open(cfg mvccactor.OpenConfig) (opened *mvccactor.Opened, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a start would panic: %v", p)
		}
	}()
	return mvccactor.Open(cfg)
}

// missingStore reports a missing store as damage, unless the first start was
// interrupted before it created one.
func (c *checker) missingStore() {
	if c.noIdentity && (c.report.Log == nil || c.report.Log.LastIndex == 0) {
		return
	}
	c.problem(problem{Area: areaStore, File: c.dir.name(c.dir.Store, ""), Reason: "there is no store"})
}

// storeFiles adds the findings of package backend to the report.
func (c *checker) storeFiles(rep *backend.Report) {
	for _, found := range rep.Problems {
		p := problem{Area: areaStore, File: c.dir.name(c.dir.Store, found.File), Reason: found.Reason}
		if found.Offset >= 0 {
			p.Offset = &found.Offset
		}
		if found.Pack != (backend.PackID{}) {
			p.Pack = found.Pack.String()
		}
		if found.Err != nil {
			p.Area, p.Reason = areaState, oneLine(found.Err)
		}
		var damage *mvcc.CorruptError
		if errors.As(found.Err, &damage) {
			p.Area, p.Reason = areaIndex, damage.Err.Error()
			if damage.Record != (mvcc.Revision{}) {
				p.Record = damage.Record.String()
			}
		}
		c.problem(p)
	}
	c.report.Omitted += rep.Omitted
	for _, n := range rep.Notes {
		c.note("%s/%s", c.dir.name(c.dir.Store, ""), n)
	}
	if rep.Interrupted {
		c.note("%s: the last batch was interrupted between two transactions", c.dir.name(c.dir.Store, ""))
	}
}

// keyspace adds the result of the simulated start to the report, and checks the state
// in the store.
func (c *checker) keyspace(rep *backend.Report, opened *mvccactor.Opened, simulated *simulatedStore) {
	c.state = opened.Durable
	s := &storeReport{Folder: c.dir.name(c.dir.Store, ""), Packs: rep.Packs, PackBytes: rep.PackBytes,
		Revision: opened.Store.Revision(), CompactRevision: opened.Store.CompactRevision(),
		AppliedIndex: c.state.GetAppliedIndex(), AppliedTerm: c.state.GetAppliedTerm()}
	sizes := opened.Store.Sizes()
	s.Keys, s.LiveBytes = sizes.Keys, sizes.Live
	c.report.Store = s
	if n := simulated.deleted + simulated.rewritten; n > 0 {
		c.note("%s: %d packs hold records of an unfinished commit, which are removed", s.Folder, n)
	}
	if c.state == nil {
		return
	}
	bad := func(format string, args ...any) {
		c.problem(problem{Area: areaState, File: s.Folder, Reason: fmt.Sprintf(format, args...)})
	}
	if c.state.Format == 0 {
		bad("the state has no format")
	}
	if s.AppliedIndex == 0 || s.AppliedTerm == 0 || len(c.state.GetConfState().GetVoters()) == 0 {
		bad("the state has applied index %d of term %d, with %d voters",
			s.AppliedIndex, s.AppliedTerm, len(c.state.GetConfState().GetVoters()))
	}
}

// simulatedStore stands in for the store in a simulated start. It counts the changes by
// which a start repairs the store.
type simulatedStore struct {
	backend.Store // nil: a start calls no other method
	deleted       int
	rewritten     int
}

// Commit implements backend.Store.
func (s *simulatedStore) Commit(b backend.Batch) error {
	s.deleted += len(b.Delete)
	s.rewritten += len(b.Put)
	return nil
}

// Close implements backend.Store.
func (s *simulatedStore) Close() error { return nil }

// entries reads the log again, now that the applied index is known, and checks that
// every entry that a start would apply can be decoded.
func (c *checker) entries() {
	l := c.report.Log
	if l == nil || !l.whole {
		return
	}
	applied := c.state.GetAppliedIndex()
	bad := 0
	err := wal.Dump(heldFS{}, c.dir.Log, func(r wal.Record) error {
		c.entry(&r, l, applied, &bad)
		return nil
	})
	if err != nil {
		c.problem(problem{Area: areaLog, File: l.Folder, Reason: "it cannot be read again: " + oneLine(err)})
	}
	if applied == l.MarkIndex {
		l.appliedTerm = l.MarkTerm
	}
}

// entry checks one record, and keeps track of the term of the entry at the applied
// index.
func (c *checker) entry(r *wal.Record, l *logReport, applied uint64, bad *int) {
	if r.Kind == wal.KindMark && r.Replaces {
		l.appliedTerm, l.LastTerm = 0, r.Term
	}
	if r.Kind != wal.KindEntry {
		return
	}
	l.LastTerm = r.Term
	switch {
	case r.Index < applied:
		l.appliedTerm = 0 // it replaces the entries after it
	case r.Index == applied:
		l.appliedTerm = r.Term
	}
	_, err := describeEntry(r, false)
	if err == nil || r.Index <= applied {
		return
	}
	if *bad++; *bad > badEntriesMax {
		c.report.Omitted++
		return
	}
	c.problem(problem{Area: areaLog, File: c.dir.name(c.dir.Log, r.File), Offset: &r.Offset,
		Reason: fmt.Sprintf("entry %d of term %d cannot be decoded: %v", r.Index, r.Term, err)})
}

// together checks that identity, log and store belong to the same member and agree on
// the applied entries.
func (c *checker) together() {
	disagree := func(file, format string, args ...any) {
		c.problem(problem{Area: areaTogether, File: file, Reason: fmt.Sprintf(format, args...)})
	}
	l, d := c.report.Log, c.state
	if c.noIdentity && (l != nil && l.LastIndex > 0 || d != nil) {
		c.note("%s: missing; the next start writes it, if log and store are of the member that is started", c.dir.name(c.dir.Identity, ""))
	}
	logName, storeName := c.dir.name(c.dir.Log, ""), c.dir.name(c.dir.Store, "")
	if c.id != nil && l != nil && (c.id.ClusterID != l.clusterID || c.id.MemberID != l.memberID) {
		disagree(logName, "the log is of member %x in cluster %x, the directory of member %x in cluster %x",
			l.memberID, l.clusterID, c.id.MemberID, c.id.ClusterID)
	}
	if c.id != nil && d != nil && (c.id.ClusterID != d.ClusterId || c.id.MemberID != d.MemberId) {
		disagree(storeName, "the store is of member %x in cluster %x, the directory of member %x in cluster %x",
			d.MemberId, d.ClusterId, c.id.MemberID, c.id.ClusterID)
	}
	if c.id == nil && l != nil && d != nil && (l.clusterID != d.ClusterId || l.memberID != d.MemberId) {
		disagree(storeName, "the store is of member %x in cluster %x, the log of member %x in cluster %x",
			d.MemberId, d.ClusterId, l.memberID, l.clusterID)
	}
	s := c.report.Store
	if l == nil || !l.whole || s == nil {
		return
	}
	if d != nil && (l.clusterID != d.ClusterId || l.memberID != d.MemberId) {
		return // the indexes of two members say nothing about each other
	}
	switch {
	case s.AppliedIndex < l.MarkIndex:
		disagree(storeName, "the store has applied entries up to %d, the log begins after %d: what is between is lost",
			s.AppliedIndex, l.MarkIndex)
	case s.AppliedIndex > l.LastIndex:
		disagree(logName, "the log ends at entry %d, the store has applied entries up to %d: entries are lost",
			l.LastIndex, s.AppliedIndex)
	case l.appliedTerm != 0 && l.appliedTerm != s.AppliedTerm:
		disagree(storeName, "the store has applied entry %d of term %d, the log has one of term %d there",
			s.AppliedIndex, s.AppliedTerm, l.appliedTerm)
	}
}

// leftovers notes what a start removes or rebuilds.
func (c *checker) leftovers() {
	for _, l := range []struct{ path, what string }{
		{c.dir.Identity + ".tmp", "an identity that was being written"},
		{c.dir.Log + ".tmp", "a log that was being created"},
		{filepath.Join(c.dir.Store, "inspect"), "left by a start that was interrupted in its check"},
	} {
		if _, err := os.Stat(l.path); err == nil {
			c.note("%s: %s", c.dir.name(l.path, ""), l.what)
		}
	}
	if c.noIdentity && c.report.Identity == nil && c.state == nil {
		c.note("%s: the first start was interrupted", c.dir.path)
	}
}
