package backend

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	// Err is what a Visit function of VerifyConfig returned; nil for damage that
	// the store itself found.
	Err error
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
	// PacksRead is false when the tables are damaged: then what they point to was
	// not read, and the numbers below are zero.
	PacksRead bool
	// Packs and PackBytes count what the store holds, Entries its state.
	Packs     int
	PackBytes uint64
	Entries   int
	// Interrupted is set when a crash cut a batch between two transactions; it is
	// no damage.
	Interrupted bool
	// Problems is empty for a good store. At most maxProblems are kept; Omitted
	// counts the others.
	Problems []Problem
	Omitted  int
	// Notes tell what a crash left and Open will repair.
	Notes []string
}

// maxProblems bounds the report: a lost table may be thousands of packs.
const maxProblems = 1000

// VerifyConfig says what to verify.
type VerifyConfig struct {
	// Dir is the folder of the store.
	Dir string
	// Progress, when set, is told the bytes read so far and the bytes to read.
	Progress func(done, total uint64)
	// VisitState and VisitPack, when set, are called as Open calls them, in the
	// pass that checks the values: with every state entry in name order and then
	// with every pack in id order, but for those that are damaged. An error is a
	// problem of what was visited, and the check goes on.
	VisitState func(Entry) error
	VisitPack  func(PackID, []byte) error
}

// Verify is VerifyWith of a folder alone. Progress may be nil.
func Verify(dir string, progress func(done, total uint64)) (*Report, error) {
	return VerifyWith(VerifyConfig{Dir: dir, Progress: progress})
}

// VerifyWith checks a store that no process has open and changes nothing in its
// folder. It reads every file once and every pack once more; the packs only if
// the tables that point to them are good. The error is about the checking: the
// store is in use (ErrInUse), missing (ErrMissing), or cannot be read. Damage is
// in the report.
func VerifyWith(cfg VerifyConfig) (*Report, error) {
	dir := cfg.Dir
	if cfg.Progress == nil {
		cfg.Progress = func(done, total uint64) {}
	}
	if _, err := os.Stat(filepath.Join(dir, manifestName)); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("backend: verify: %w", err)
		}
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

	v := &verifier{missing: missingFile{Logger: nopLogger{}}, cfg: cfg, overlay: overlay{dir: dir, tmp: tmp}, places: make(map[PackID]place)}
	if err := v.run(); err != nil {
		return nil, fmt.Errorf("backend: verify: %w", err)
	}
	cfg.Progress(v.total, v.total)
	return &v.report, nil
}

type verifier struct {
	cfg         VerifyConfig
	overlay     overlay
	report      Report
	done, total uint64
	// places says where the value logs hold the newest version of each pack. It
	// takes some 50 bytes per pack, and is filled in the pass that reads the logs:
	// searching them for each damaged pack would take hours where many are.
	places map[PackID]place
	// bad are the records of value logs that fail their check, in order.
	bad []badRecord
	// missing knows the value log that a failing read did not find.
	missing missingFile
}

// place is where the newest version of a pack was found in a value log.
type place struct {
	version uint64
	offset  int64
	fid     uint32
}

// badRecord is a record that fails its check.
type badRecord struct {
	fid    uint32
	offset int64
	pack   PackID // as far as it can be read, else zero
	reason string
	told   bool // as a problem of its pack
}

func (v *verifier) run() error {
	dir := v.overlay.dir
	n, err := allocated(dir, func(name string) bool { return filepath.Ext(name) == valueLogExt })
	if err != nil {
		return err
	}
	v.total = 2 * n
	fids, err := numbered(dir, valueLogExt)
	if err != nil {
		return err
	}
	for _, fid := range fids {
		if err := v.valueLog(fid); err != nil {
			return err
		}
	}
	if err := v.overlay.build(); err != nil {
		return err
	}
	v.report.Notes = v.overlay.notes
	for _, p := range v.overlay.damage {
		v.problem(p)
	}
	if len(v.overlay.damage) == 0 { // badger would not survive opening it
		if err := v.open(); err != nil {
			return err
		}
	}
	// What nothing lives in matters too: reclaim would stop there. In the last log
	// it is what a crash cut off, unless live data lies behind it.
	for _, b := range v.bad {
		if !b.told && b.fid != highest(fids) {
			v.problem(Problem{File: valueLogName(b.fid), Offset: b.offset, Pack: b.pack, Reason: b.reason})
		}
	}
	return nil
}

func valueLogName(fid uint32) string { return filepath.Base(valueLogPath("", fid)) }

// open opens the overlay and reads what it holds.
func (v *verifier) open() error {
	memTable, err := memTableBytes(v.overlay.dir, defaultMemTableBytes)
	if err != nil {
		return err
	}
	db, err := v.overlay.open(memTable, &v.missing)
	if err != nil {
		v.problem(asProblem(err))
		return nil
	}
	var faulted atomic.Bool
	r := &reader{db: db, dir: v.overlay.dir, faulted: &faulted}
	v.scan(r)
	v.lastLog(r)
	if faulted.Load() {
		return nil // badger would wait for a lock for ever
	}
	return guard(db.Close)
}

// lastLog reports live data behind a bad record of the last value log, where
// Open would cut it off.
func (v *verifier) lastLog(r *reader) {
	name, at := v.overlay.lastLog, v.overlay.lastLogEnd.valid
	damaged := slices.ContainsFunc(v.report.Problems, func(p Problem) bool { return p.File == name && p.Offset == at })
	if !damaged {
		err := v.overlay.tailDamage(r)
		if err == nil {
			return
		}
		p := asProblem(err)
		if p.File == name {
			p.Offset = at
		}
		v.problem(p)
	}
	v.report.Notes = slices.DeleteFunc(v.report.Notes, func(note string) bool { return strings.HasPrefix(note, name+":") })
}

func (v *verifier) problem(p Problem) {
	if len(v.report.Problems) == maxProblems {
		v.report.Omitted++
		return
	}
	v.report.Problems = append(v.report.Problems, p)
}

func (v *verifier) read(n int) {
	v.done = min(v.done+uint64(n), v.total)
	v.cfg.Progress(v.done, v.total)
}

// valueLog checks every record, the garbage included, and notes where packs are.
func (v *verifier) valueLog(fid uint32) error {
	path := valueLogPath(v.overlay.dir, fid)
	end, err := walkLog(path, func(r *logRecord) error {
		v.place(fid, r)
		v.read(int(r.length))
		return nil
	})
	if err != nil || end.clean {
		return err
	}
	return v.behind(path, fid, end.valid)
}

// behind looks at a bad record and reads on behind it, as long as lengths lead
// from one record to the next.
func (v *verifier) behind(path string, fid uint32, at int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	r := bufio.NewReaderSize(io.NewSectionReader(f, at, info.Size()-at), logReadBuffer)
	var rec logRecord
	for ; at < info.Size() && len(v.bad) < maxProblems; at += rec.length {
		good, err := readRecord(r, at, info.Size()-at, &rec)
		if errors.Is(err, errBadRecord) {
			zeros, err := onlyZeros(f, at, info.Size())
			if err == nil && !zeros {
				v.bad = append(v.bad, badRecord{fid: fid, offset: at, reason: "no record can be read from here on"})
			}
			return err
		}
		if err != nil {
			return err
		}
		v.place(fid, &rec)
		if !good {
			b := badRecord{fid: fid, offset: at, reason: "record has a bad checksum"}
			b.pack, _ = parsePackKey(rec.userKey())
			v.bad = append(v.bad, b)
		}
	}
	return nil
}

func (v *verifier) place(fid uint32, r *logRecord) {
	id, ok := parsePackKey(r.userKey())
	if ok && r.version() >= v.places[id].version {
		v.places[id] = place{r.version(), r.offset, fid}
	}
}

// packProblem says where a pack lies in which something is wrong. Size is that
// of its value, zero if it is unknown.
func (v *verifier) packProblem(id PackID, size uint32, err error) Problem {
	p := Problem{Offset: -1, Pack: id, Reason: err.Error()}
	at, ok := v.places[id]
	if !ok || size > 0 && size < valueThreshold {
		return p // it is not in a value log, or an earlier version is
	}
	p.File, p.Offset = valueLogName(at.fid), at.offset
	return p
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
			v.damagedPack(id, m.size, damage)
			return nil
		}
		t.packs[id] = m
		packs.add(packTerm(id, m.crc), m.size)
		if v.cfg.VisitPack == nil {
			return nil
		}
		if err := v.cfg.VisitPack(id, value); err != nil {
			p := v.packProblem(id, m.size, err)
			p.Err = err
			v.problem(p)
		}
		return nil
	})
	if err != nil {
		v.problem(asProblem(err))
		return
	}
	v.report.PacksRead = true
	v.report.Packs, v.report.PackBytes = len(t.packs), packs.bytes
	if bad > 0 && packs.count+uint64(bad) == t.cat.packs.count {
		return // the bad ones are named and none is missing
	}
	damage := t.cat.explain(packs, t.packs)
	switch {
	case damage == nil:
	case damage.Pack == (PackID{}):
		v.problem(asProblem(damage))
	default:
		v.problem(v.packProblem(damage.Pack, 0, errors.New(damage.Reason)))
	}
}

// damagedPack reports a pack that cannot be read.
func (v *verifier) damagedPack(id PackID, size uint32, damage error) {
	p := v.packProblem(id, size, damage)
	if errors.Is(damage, errUnreadable) {
		// Badger says no more than that. Its log says if a whole file is missing,
		// and else the damaged record has been met; if not, where the pack was seen
		// is an earlier version of it.
		p.File, p.Offset = "", -1
		if fid, ok := v.missing.take(); ok {
			p.File, p.Reason = valueLogName(fid), "file is missing"
		} else if b := v.badRecordOf(id); b != nil {
			p.File, p.Offset, p.Reason = valueLogName(b.fid), b.offset, b.reason
			b.told = true
		}
	}
	v.problem(p)
}

// badRecordOf returns the bad record at the place of a pack, or nil.
func (v *verifier) badRecordOf(id PackID) *badRecord {
	at, ok := v.places[id]
	for i := range v.bad {
		if b := &v.bad[i]; ok && b.fid == at.fid && b.offset == at.offset {
			return b
		}
	}
	return nil
}

// missingFile is the Logger of a store that is read whole: from what badger logs
// about a failing read it takes the number of the value log that is not there.
type missingFile struct {
	Logger
	mu    sync.Mutex
	fid   uint32
	found bool
}

var missingFileText = regexp.MustCompile(`file with ID: (\d+) not found`)

// Debugf implements Logger: failing reads are logged there.
func (m *missingFile) Debugf(format string, args ...any) {
	m.Logger.Debugf(format, args...)
	if format != "badger: %s" {
		return
	}
	match := missingFileText.FindStringSubmatch(fmt.Sprintf(format, args...))
	if match == nil {
		return
	}
	if n, err := strconv.ParseUint(match[1], 10, 32); err == nil {
		m.mu.Lock()
		m.fid, m.found = uint32(n), true
		m.mu.Unlock()
	}
}

// take returns the number that was logged since the last call, if any.
func (m *missingFile) take() (fid uint32, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fid, ok = m.fid, m.found
	m.found = false
	return fid, ok
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
		if v.cfg.VisitState == nil {
			return nil
		}
		if err := v.cfg.VisitState(Entry{Key: string(key[1:]), Value: slices.Clone(value)}); err != nil {
			v.problem(Problem{Offset: -1, Reason: err.Error(), Err: err})
		}
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
