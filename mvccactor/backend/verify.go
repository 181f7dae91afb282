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

// The path of a store through VerifyWith:
//
//	valueLog  read every record of every value log, dead ones included, and note where the
//	          packs are and which records are bad
//	build     make an overlay, which checks tables, memtable logs and the manifest
//	scan      if those are good, open the overlay, read all state and all packs, and compare
//	          them with the catalogue. A bad pack is reported with its place in a value log
//	lastLog   report live values after a bad record of the last value log
//	the rest  report the bad records of value logs that no pack has accounted for
//
// Unlike Open, VerifyWith goes on after damage, to report all of it.

// Problem is one piece of damage found by Verify.
type Problem struct {
	// File is a base name; empty if it is unknown.
	File string
	// Offset is the offset in the file, in bytes; -1 if it is unknown.
	Offset int64
	// Pack is the damaged pack; zero if the damage does not belong to one pack.
	Pack   PackID
	Reason string
	// Err is the error of a Visit function of VerifyConfig; nil for damage that the
	// store itself found.
	Err error
}

// String returns the problem as text.
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
	// PacksRead is false if the tables are damaged. What they point to was not read
	// then, and the numbers below are zero.
	PacksRead bool
	// Packs is the number of packs, PackBytes their size, and Entries the number of
	// state entries.
	Packs     int
	PackBytes uint64
	Entries   int
	// Interrupted is set if a crash interrupted a batch between two transactions. That
	// is not damage.
	Interrupted bool
	// Problems is empty for a good store. It has at most maxProblems; Omitted is the
	// number of others.
	Problems []Problem
	Omitted  int
	// Notes describe what a crash left and Open will repair.
	Notes []string
}

// maxProblems bounds the report: if a table is lost, thousands of packs can be damaged.
const maxProblems = 1000

// VerifyConfig configures VerifyWith.
type VerifyConfig struct {
	// Dir is the directory of the store.
	Dir string
	// Progress, if set, is called with the bytes read so far and the bytes to read.
	Progress func(done, total uint64)
	// VisitState and VisitPack, if set, are called as Open calls them, in the pass that
	// checks the values: with every state entry in name order and then with every pack
	// in order of ids, without damaged ones. An error becomes a Problem of what was
	// visited, and the check continues.
	VisitState func(Entry) error
	VisitPack  func(PackID, []byte) error
}

// Verify is VerifyWith without visits. progress may be nil.
func Verify(dir string, progress func(done, total uint64)) (*Report, error) {
	return VerifyWith(VerifyConfig{Dir: dir, Progress: progress})
}

// VerifyWith checks a store that no process has open and changes nothing in its directory. It
// reads every file once and, if the tables that point to the packs are good, every pack once
// more. It returns damage in the report. The error means that the check is not complete: the
// store is in use (ErrInUse), missing (ErrMissing), or cannot be read.
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

// verifier is the state of one VerifyWith.
type verifier struct {
	cfg         VerifyConfig
	overlay     overlay
	report      Report
	done, total uint64 // progress, in bytes
	// places has the place of the newest version of each pack in the value logs. The
	// pass that reads the logs fills it: to search the logs for each damaged pack would
	// take too long if there are many.
	places map[PackID]place
	// bad has the records of value logs that fail their check, in order. The pass that
	// reads the logs fills it, with at most maxProblems.
	bad []badRecord
	// missing is badger's logger, which finds missing value logs.
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
	fid      uint32
	offset   int64
	pack     PackID // zero if it cannot be read
	reason   string
	reported bool // as a problem of its pack
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
	if len(v.overlay.damage) == 0 { // badger could exit the process on damage
		if err := v.open(); err != nil {
			return err
		}
	}
	// Bad records of dead values matter too, because Reclaim stops at them. In the last
	// log a bad record without live values after it was left by a crash.
	for _, b := range v.bad {
		if !b.reported && b.fid != highest(fids) {
			v.problem(Problem{File: valueLogName(b.fid), Offset: b.offset, Pack: b.pack, Reason: b.reason})
		}
	}
	return nil
}

func valueLogName(fid uint32) string { return filepath.Base(valueLogPath("", fid)) }

// open opens the overlay and reads its content.
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
		return nil // do not close badger; see store.faulted
	}
	return guard(db.Close)
}

// lastLog reports live values after a bad record of the last value log, where badger would
// truncate it.
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

// problem adds a problem to the report.
func (v *verifier) problem(p Problem) {
	if len(v.report.Problems) == maxProblems {
		v.report.Omitted++
		return
	}
	v.report.Problems = append(v.report.Problems, p)
}

// read reports progress of n bytes.
func (v *verifier) read(n int) {
	v.done = min(v.done+uint64(n), v.total)
	v.cfg.Progress(v.done, v.total)
}

// valueLog checks every record of a value log, dead ones included, and notes where packs are.
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
	return v.readOn(path, fid, end.valid)
}

// readOn notes the bad record at an offset and reads the records after it, as long as lengths
// lead from one record to the next.
func (v *verifier) readOn(path string, fid uint32, at int64) error {
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
				v.bad = append(v.bad, badRecord{fid: fid, offset: at, reason: "no record can be read from here to the end"})
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

// place notes where a record is, if it is a pack.
func (v *verifier) place(fid uint32, r *logRecord) {
	id, ok := parsePackKey(r.userKey())
	if ok && r.version() >= v.places[id].version {
		v.places[id] = place{r.version(), r.offset, fid}
	}
}

// packProblem returns a problem with the place of the pack. size is that of its value, zero
// if it is unknown.
func (v *verifier) packProblem(id PackID, size uint32, err error) Problem {
	p := Problem{Offset: -1, Pack: id, Reason: err.Error()}
	at, ok := v.places[id]
	if !ok || size > 0 && size < valueThreshold {
		return p // the pack is not in a value log, or only an earlier version is
	}
	p.File, p.Offset = valueLogName(at.fid), at.offset
	return p
}

// scan reads all state and all packs, also after damaged ones, and compares them with the
// catalogue.
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
			damage = fmt.Errorf("key %x is not the key of a pack", key)
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
		return // the damaged ones are reported, and none is missing
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
		// Badger returns no reason. If a whole file is missing, badger has logged
		// that. Otherwise bad has the damaged record; if it has not, the place of the
		// pack is that of an earlier version.
		p.File, p.Offset = "", -1
		if fid, ok := v.missing.take(); ok {
			p.File, p.Reason = valueLogName(fid), "file is missing"
		} else if b := v.badRecordOf(id); b != nil {
			p.File, p.Offset, p.Reason = valueLogName(b.fid), b.offset, b.reason
			b.reported = true
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

// missingFile is a Logger that finds missing value logs: badger logs the number of a value
// log that a failed read did not find, and returns no error.
type missingFile struct {
	Logger
	mu    sync.Mutex
	fid   uint32 // in the last such line
	found bool   // fid was logged since the last take
}

var missingFileText = regexp.MustCompile(`file with ID: (\d+) not found`)

// Debugf implements Logger. Failed reads are logged at this level; see readErrorFormats.
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

// take returns the number of a missing value log, if one was logged since the last call.
func (m *missingFile) take() (fid uint32, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fid, ok = m.fid, m.found
	m.found = false
	return fid, ok
}

// scanState does what scan does, for the state.
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

// asProblem returns a *CorruptError, or any other error, as a problem.
func asProblem(err error) Problem {
	var c *CorruptError
	if errors.As(err, &c) {
		return Problem{File: c.File, Offset: -1, Pack: c.Pack, Reason: c.Reason}
	}
	return Problem{Offset: -1, Reason: err.Error()}
}
