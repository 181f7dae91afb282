package backend

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
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

func (r *Report) problem(p Problem) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, p)
	}
}

// Verify checks a store that no process has open and changes nothing in its
// folder. It reads every file once and every pack once more. Progress, which
// may be nil, is told the bytes read so far and the bytes to read. The error is
// about the checking; damage is in the report.
//
// Badger cannot open a folder for reading after a crash. So it is given a
// temporary one with links to the tables and value logs, which it then only
// reads, and with copies of the small files, cut to what it would keep.
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

	v := &verifier{dir: dir, tmp: tmp, progress: progress}
	if v.total, err = v.work(); err != nil {
		return nil, fmt.Errorf("backend: verify: %w", err)
	}
	if err := v.files(); err != nil {
		return nil, fmt.Errorf("backend: verify: %w", err)
	}
	if err := v.packs(); err != nil {
		return nil, fmt.Errorf("backend: verify: %w", err)
	}
	progress(v.total, v.total)
	return &v.report, nil
}

type verifier struct {
	dir, tmp    string
	report      Report
	progress    func(done, total uint64)
	done, total uint64
}

// work is the number of bytes to read: the value logs twice.
func (v *verifier) work() (uint64, error) {
	n, err := allocated(v.dir, func(name string) bool { return filepath.Ext(name) == valueLogExt })
	return 2 * n, err
}

func (v *verifier) read(n int) {
	v.done = min(v.done+uint64(n), v.total)
	v.progress(v.done, v.total)
}

// files checks each file by itself and fills the temporary folder.
func (v *verifier) files() error {
	files, err := os.ReadDir(v.dir)
	if err != nil {
		return err
	}
	fids, err := numbered(v.dir, valueLogExt)
	if err != nil {
		return err
	}
	for _, f := range files {
		name := f.Name()
		info, err := f.Info()
		if err != nil {
			return err
		}
		switch ext := filepath.Ext(name); {
		case (ext == valueLogExt || ext == memLogExt) && info.Size() == 0:
			v.report.Notes = append(v.report.Notes, name+": log of length zero left by a crash")
		case ext == valueLogExt:
			fid, _ := fileNumber(name, valueLogExt)
			err = v.valueLog(name, fid == highest(fids))
		case ext == memLogExt:
			err = v.memLog(name)
		case ext == tableExt:
			err = v.link(name)
		case name == manifestName:
			err = v.manifest()
		case name == badger.KeyRegistryFileName:
			err = v.copy(name, info.Size())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) link(name string) error {
	abs, err := filepath.Abs(filepath.Join(v.dir, name))
	if err != nil {
		return err
	}
	return os.Symlink(abs, filepath.Join(v.tmp, name))
}

func (v *verifier) copy(name string, size int64) error {
	in, err := os.Open(filepath.Join(v.dir, name))
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(v.tmp, name))
	if err != nil {
		return err
	}
	_, err = io.CopyN(out, in, size)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// valueLog checks the records of a value log. The last one may end in what a
// crash cut off.
func (v *verifier) valueLog(name string, last bool) error {
	var pack PackID
	end, err := walkLog(filepath.Join(v.dir, name), func(r *logRecord) error {
		if id, ok := parsePackKey(r.userKey()); ok {
			pack = id
		}
		v.read(int(r.length))
		return nil
	})
	if err != nil {
		return err
	}
	switch {
	case end.clean:
	case last:
		v.report.Notes = append(v.report.Notes,
			fmt.Sprintf("%s: unfinished record at offset %d of %d", name, end.valid, end.size))
	default:
		v.report.problem(Problem{File: name, Offset: end.valid,
			Reason: fmt.Sprintf("bad record, after pack %s", pack)})
	}
	return v.link(name)
}

// memLog copies what badger would keep of a memtable log.
func (v *verifier) memLog(name string) error {
	end, err := walkLog(filepath.Join(v.dir, name), nil)
	if err != nil {
		return err
	}
	if !end.clean || end.valid != end.committed {
		v.report.Notes = append(v.report.Notes,
			fmt.Sprintf("%s: unfinished transaction at offset %d of %d", name, end.committed, end.size))
	}
	return v.copy(name, end.committed)
}

func (v *verifier) manifest() error {
	data, err := os.ReadFile(filepath.Join(v.dir, manifestName))
	if err != nil {
		return err
	}
	end, damaged := manifestEnd(data)
	switch {
	case damaged:
		v.report.problem(Problem{File: manifestName, Offset: int64(end), Reason: "bad record"})
	case end < len(data):
		v.report.Notes = append(v.report.Notes, fmt.Sprintf("%s: half-written record at offset %d", manifestName, end))
	}
	return v.copy(manifestName, int64(end))
}

// packs opens the temporary folder and reads everything through badger.
func (v *verifier) packs() error {
	bridge := &logBridge{log: nopLogger{}, fail: func(error) {}}
	cfg, err := Config{Dir: v.tmp}.withDefaults()
	if err != nil {
		return err
	}
	if cfg.MemTableBytes, err = memTableBytes(v.dir, cfg.MemTableBytes); err != nil {
		return err
	}
	o := badgerOptions(cfg, bridge)
	o.ReadOnly = true
	db, err := openBadger(o, nopLogger{})
	if err != nil {
		v.report.problem(Problem{Offset: -1, Reason: err.Error()})
		return nil
	}
	if path := bridge.ignoredTable(); path != "" {
		v.report.problem(Problem{File: filepath.Base(path), Offset: -1, Reason: "table has a bad checksum"})
	}
	var faulted atomic.Bool
	r := &reader{db: db, dir: v.dir, faulted: &faulted}
	v.scan(r)
	if faulted.Load() {
		return nil // badger would wait for a lock for ever
	}
	return guard(db.Close)
}

// scan reads all packs, goes on after bad ones, and compares the catalogue.
func (v *verifier) scan(r *reader) {
	t := newTable()
	found, err := r.readCatalogue(t)
	if err != nil {
		v.report.problem(asProblem(err))
		return
	}
	if !found {
		v.report.problem(Problem{Offset: -1, Reason: "catalogue is missing"})
	}
	v.report.Interrupted = t.cat.split
	var state, packs fingerprint
	bad := 0
	err = r.each(prefixState, func(key, value []byte, m meta, damage error) error {
		if damage != nil {
			bad++
			v.report.problem(Problem{Offset: -1, Reason: fmt.Sprintf("state %q: %v", key[1:], damage)})
			return nil
		}
		v.report.Entries++
		state.add(stateTerm(string(key[1:]), m.crc), m.size)
		return nil
	})
	if err == nil && bad == 0 && state != t.cat.state {
		err = &CorruptError{Reason: fmt.Sprintf("catalogue holds %d state entries, found %d that differ", t.cat.state.count, state.count)}
	}
	if err != nil {
		v.report.problem(asProblem(err))
	}
	bad = 0
	err = r.each(prefixPack, func(key, value []byte, m meta, damage error) error {
		v.read(len(value))
		id, ok := parsePackKey(key)
		if !ok {
			damage = fmt.Errorf("key %x is no pack's", key)
		}
		if damage != nil {
			bad++
			v.report.problem(asProblem(r.corrupt(id, damage)))
			return nil
		}
		t.packs[id] = m
		packs.add(packTerm(id, m.crc), m.size)
		return nil
	})
	if err != nil {
		v.report.problem(asProblem(err))
		return
	}
	v.report.Packs, v.report.PackBytes = len(t.packs), packs.bytes
	if bad > 0 && packs.count+uint64(bad) == t.cat.packs.count {
		return // the bad ones are named and none is missing
	}
	if damage := t.cat.explain(packs, t.packs); damage != nil {
		v.report.problem(asProblem(damage))
	}
}

func asProblem(err error) Problem {
	var c *CorruptError
	if errors.As(err, &c) {
		return Problem{File: c.File, Offset: -1, Pack: c.Pack, Reason: c.Reason}
	}
	return Problem{Offset: -1, Reason: err.Error()}
}
