package backend

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Problem is one piece of damage found by Verify.
type Problem struct {
	// File is a base name; empty when it is unknown.
	File string
	// Offset is where in the file, in bytes; -1 when it is unknown.
	Offset int64
	// Pack is zero when the damage is not one pack's.
	Pack   PackID
	Reason string
}

// String formats the problem for an operator.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Offset >= 0 {
			fmt.Fprintf(&b, " at %d", p.Offset)
		}
		b.WriteString(": ")
	}
	if p.Pack != (PackID{}) {
		fmt.Fprintf(&b, "pack %s: ", p.Pack)
	}
	return b.String() + p.Reason
}

// Report is the result of Verify.
type Report struct {
	// Packs and PackBytes count what the store holds, Entries its state.
	Packs     int
	PackBytes uint64
	Entries   int
	// Interrupted is set when a crash cut a batch between two transactions; it is
	// no damage.
	Interrupted bool
	// Problems is empty for a good store. At most maxProblems are kept.
	Problems []Problem
	// Notes tell what a crash left and Open will repair.
	Notes []string
}

// maxProblems bounds the report: a lost table may be thousands of packs.
const maxProblems = 1000

// Verify checks a store that no process has open and changes nothing in its
// folder. It reads every file once and every pack once more; the packs only if
// the tables that point to them are good. Progress, which
// may be nil, is told the bytes read so far and the bytes to read. The error is
// about the checking; damage is in the report.
func Verify(dir string, progress func(done, total uint64)) (*Report, error) {
	if progress == nil {
		progress = func(done, total uint64) {}
	}
	if _, err := os.Stat(filepath.Join(dir, manifestName)); err != nil {
		if perr := checkManifestPresent(dir); perr != nil {
			return &Report{Problems: []Problem{asProblem(perr)}}, nil
		}
		return nil, fmt.Errorf("%w: %s", ErrMissing, dir)
	}
	release, err := lockDir(dir, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer release()
	tmp, err := os.MkdirTemp("", "verify-")
	if err != nil {
		return nil, fmt.Errorf("backend: verify: %w", err)
	}
	defer os.RemoveAll(tmp)

	v := &verifier{overlay: overlay{dir: dir, tmp: tmp}, progress: progress}
	if err := v.run(); err != nil {
		return nil, fmt.Errorf("backend: verify: %w", err)
	}
	progress(v.total, v.total)
	return &v.report, nil
}

type verifier struct {
	overlay     overlay
	report      Report
	progress    func(done, total uint64)
	done, total uint64
}

func (v *verifier) run() error {
	dir := v.overlay.dir
	n, err := allocated(dir, func(name string) bool { return filepath.Ext(name) == valueLogExt })
	if err != nil {
		return err
	}
	v.total = 2 * n
	if err := v.valueLogs(); err != nil {
		return err
	}
	if err := v.overlay.build(); err != nil {
		return err
	}
	v.report.Notes = v.overlay.notes
	for _, p := range v.overlay.damage {
		v.problem(p)
	}
	if len(v.overlay.damage) > 0 {
		return nil // badger would not survive opening it
	}
	memTable, err := memTableBytes(dir, defaultMemTableBytes)
	if err != nil {
		return err
	}
	db, err := v.overlay.open(memTable, nopLogger{})
	if err != nil {
		v.problem(asProblem(err))
		return nil
	}
	var faulted atomic.Bool
	r := &reader{db: db, dir: dir, faulted: &faulted}
	v.scan(r)
	if err := v.overlay.tailDamage(r); err != nil {
		v.problem(asProblem(err))
	}
	if faulted.Load() {
		return nil // badger would wait for a lock for ever
	}
	return guard(db.Close)
}

func (v *verifier) problem(p Problem) {
	if len(v.report.Problems) < maxProblems {
		v.report.Problems = append(v.report.Problems, p)
	}
}

func (v *verifier) read(n int) {
	v.done = min(v.done+uint64(n), v.total)
	v.progress(v.done, v.total)
}

// valueLogs checks every record, the garbage included. The last log may end in
// what a crash cut off.
func (v *verifier) valueLogs() error {
	fids, err := numbered(v.overlay.dir, valueLogExt)
	if err != nil {
		return err
	}
	for _, fid := range fids {
		path := valueLogPath(v.overlay.dir, fid)
		var pack PackID
		end, err := walkLog(path, func(r *logRecord) error {
			if id, ok := parsePackKey(r.userKey()); ok {
				pack = id
			}
			v.read(int(r.length))
			return nil
		})
		if err != nil {
			return err
		}
		if !end.clean && fid != highest(fids) {
			v.problem(Problem{File: filepath.Base(path), Offset: end.valid,
				Reason: fmt.Sprintf("bad record, after pack %s", pack)})
		}
	}
	return nil
}

// scan reads all packs, goes on after bad ones, and compares the catalogue.
func (v *verifier) scan(r *reader) {
	t := newTable()
	found, err := r.readCatalogue(t)
	if err != nil {
		v.problem(asProblem(err))
		return
	}
	if !found {
		v.problem(Problem{Offset: -1, Reason: "catalogue is missing"})
	}
	v.report.Interrupted = t.cat.split
	v.scanState(r, t)
	var packs fingerprint
	bad := 0
	err = r.each(prefixPack, func(key, value []byte, m meta, damage error) error {
		v.read(len(value))
		id, ok := parsePackKey(key)
		if !ok {
			damage = fmt.Errorf("key %x is no pack's", key)
		}
		if damage != nil {
			bad++
			v.problem(asProblem(r.corrupt(id, damage)))
			return nil
		}
		t.packs[id] = m
		packs.add(packTerm(id, m.crc), m.size)
		return nil
	})
	if err != nil {
		v.problem(asProblem(err))
		return
	}
	v.report.Packs, v.report.PackBytes = len(t.packs), packs.bytes
	if bad > 0 && packs.count+uint64(bad) == t.cat.packs.count {
		return // the bad ones are named and none is missing
	}
	if damage := t.cat.explain(packs, t.packs); damage != nil {
		v.problem(asProblem(damage))
	}
}

func (v *verifier) scanState(r *reader, t *table) {
	var state fingerprint
	bad := 0
	err := r.each(prefixState, func(key, value []byte, m meta, damage error) error {
		if damage != nil {
			bad++
			v.problem(Problem{Offset: -1, Reason: fmt.Sprintf("state %q: %v", key[1:], damage)})
			return nil
		}
		v.report.Entries++
		state.add(stateTerm(string(key[1:]), m.crc), m.size)
		return nil
	})
	if err == nil && bad == 0 && state != t.cat.state {
		err = stateDamage(t.cat.state, state)
	}
	if err != nil {
		v.problem(asProblem(err))
	}
}

func asProblem(err error) Problem {
	var c *CorruptError
	if errors.As(err, &c) {
		return Problem{File: c.File, Offset: -1, Pack: c.Pack, Reason: c.Reason}
	}
	return Problem{Offset: -1, Reason: err.Error()}
}
