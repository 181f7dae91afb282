package backend

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

// The path of a batch in Commit:
//
//	planBatch  check the batch and split it into steps, one transaction each
//	fill       encode the values of a step into the buffer and the transaction
//	after      add the catalogue after the step to the transaction
//	begin      announce the change, because readers may see it before the commit returns
//	send       commit the transaction, which badger syncs, and sync the directory if a log
//	           file is new
//	finish     apply the change to the table
//
// An error of any step makes the store fail: it is unknown what is durable, and the next Open
// finds out. A read compares what badger returns with the table, and repeats if the two
// disagree because of a concurrent commit or rewrite.

const (
	// readAttempts bounds the attempts of a read. An attempt can fail although nothing
	// is damaged, if its pointer is to a value log that was rewritten in between.
	readAttempts = 3
	// keepBuffer is the size in bytes of the largest buffer that is kept between
	// commits. A batch of the persister has 4 MiB.
	keepBuffer = 8 << 20
)

// errNoKey means that badger does not have a key.
var errNoKey = errors.New("badger does not have the key")

// store implements Store on badger.
type store struct {
	cfg    Config
	db     *badger.DB
	merger *merger // of db
	limits limits
	bridge *logBridge
	table  *table

	// callsLock is held for reading during every call, and for writing by Close.
	callsLock sync.RWMutex
	closed    bool // set by Close; guarded by callsLock
	// closing is cancelled by Close, through close. It ends a Reclaim.
	closing context.Context
	close   context.CancelFunc
	// reclaiming is held during Reclaim, and while pages are released.
	reclaiming sync.Mutex

	// commit is held during transactions. It guards the fields below.
	commit sync.Mutex
	seq    uint64 // number of the last transaction, also of one that failed
	buffer []byte // of encoded values; reused
	// valueLog and memLog are the highest numbers of log files whose names are
	// durable. syncNames sets them.
	valueLog, memLog uint32

	// touched counts the bytes of value logs that were read or written since their
	// pages were last released.
	touched atomic.Int64

	// failure is the first error that made the store fail; nil before. It is set once,
	// and no commit is accepted from then on.
	failure atomic.Pointer[error]
	// faulted is set by a read that panicked, usually by a fault on a page that the disk
	// could not read, and never cleared. Badger still holds the lock of that file.
	// IMPORTANT: badger must not be closed then, because it would wait for that lock for
	// ever.
	faulted atomic.Bool
}

// Open opens the store in cfg.Dir, or creates one. It reads every pack and compares them with
// the catalogue. If a pack is missing or altered, or there is any other damage, the error is a
// *CorruptError.
func Open(cfg Config) (Store, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	exists, err := findOrCreate(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.MemTableBytes, err = memTableBytes(cfg.Dir, cfg.MemTableBytes); err != nil {
		return nil, err
	}
	s := &store{cfg: cfg, table: newTable()}
	if exists {
		if err := s.inspect(); err != nil {
			return nil, err
		}
		for _, m := range s.table.packs {
			cfg.PackBytes = max(cfg.PackBytes, int64(m.size))
		}
	}
	cfg.fitPacks(cfg.PackBytes)
	s.cfg = cfg
	s.closing, s.close = context.WithCancel(context.Background())
	s.bridge = &logBridge{log: cfg.Logger, fail: s.fail}
	if s.db, err = openBadger(badgerOptions(cfg, s.bridge), cfg.Logger); err != nil {
		s.close()
		return nil, err
	}
	s.merger = startMerger(s.db, cfg.Logger)
	if err := s.start(); err != nil {
		s.close()
		s.merger.signal()
		s.abandon()
		return nil, err
	}
	return s, nil
}

// inspect reads and checks the whole store, and fills the table. Only if it finds no damage,
// it repairs what a crash left. Otherwise it changes nothing.
func (s *store) inspect() error {
	release, err := lockDir(s.cfg.Dir, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer release()
	// The temporary directory is in the store's, which is certainly writable.
	tmp := filepath.Join(s.cfg.Dir, inspectName)
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	defer os.RemoveAll(tmp)
	o := &overlay{dir: s.cfg.Dir, tmp: tmp}
	if err := o.build(); err != nil {
		return fmt.Errorf("backend: open: %w", err)
	}
	if len(o.damage) > 0 {
		p := o.damage[0]
		if p.Offset >= 0 {
			p.Reason += fmt.Sprintf(", at offset %d", p.Offset)
		}
		return &CorruptError{File: p.File, Reason: p.Reason}
	}
	if err := s.read(o); err != nil {
		return err
	}
	for _, note := range o.notes {
		s.cfg.Logger.Warnf("%s", note)
	}
	if err := o.cutLastLog(); err != nil {
		return err
	}
	return repairDir(s.cfg)
}

// inspectName is the name of the temporary directory of inspect.
const inspectName = "inspect"

// read fills the table from an overlay and checks the values.
func (s *store) read(o *overlay) error {
	missing := &missingFile{Logger: s.cfg.Logger}
	db, err := o.open(s.cfg.MemTableBytes, missing)
	if err != nil {
		return err
	}
	r := &reader{db: db, dir: o.dir, faulted: &s.faulted, missing: missing}
	found, err := r.rebuild(s.table, s.cfg.VisitState, s.cfg.VisitPack)
	if err == nil && !found && s.cfg.MustExist {
		err = &CorruptError{Reason: "catalogue is missing"}
	}
	if err == nil {
		err = o.tailDamage(r)
	}
	if s.faulted.Load() {
		return err // do not close badger; see faulted
	}
	if cerr := guard(db.Close); err == nil && cerr != nil {
		err = fmt.Errorf("backend: open: %w", cerr)
	}
	return err
}

// openBadger opens the database. If a crash happened after badger created a file and before
// it set its size, the first attempt fails, but sets the size.
func openBadger(o badger.Options, log Logger) (db *badger.DB, err error) {
	for range 2 {
		err = guard(func() (err error) {
			db, err = badger.OpenManaged(o)
			return err
		})
		if err == nil {
			return db, nil
		}
		if !strings.Contains(err.Error(), "Create a new file") {
			break
		}
		log.Warnf("badger: %v; retrying", err)
	}
	if strings.Contains(err.Error(), "Cannot acquire directory lock") {
		return nil, fmt.Errorf("%w: %s", ErrInUse, o.Dir)
	}
	return nil, fmt.Errorf("backend: open: %w", err)
}

// start checks that badger opened what inspect read, and writes the first catalogue if there
// is none.
func (s *store) start() error {
	if path := s.bridge.ignoredTable(); path != "" {
		return &CorruptError{File: filepath.Base(path), Reason: "table has a bad checksum"}
	}
	if err := s.failed(); err != nil {
		return err
	}
	s.limits = newLimits(s.db.MaxBatchCount(), s.db.MaxBatchSize(), s.cfg.ValueLogBytes)
	// What badger opened must be what was read before.
	opened := newTable()
	found, err := s.reader().readCatalogue(opened)
	if err != nil {
		return err
	}
	if opened.cat != s.table.cat {
		return &CorruptError{Reason: fmt.Sprintf("checked the catalogue of transaction %d, but opened that of transaction %d", s.table.cat.seq, opened.cat.seq)}
	}
	s.seq = max(s.db.MaxVersion(), s.table.cat.seq)
	s.db.SetDiscardTs(s.seq)
	if !found {
		if err := s.apply(step{}, false); err != nil {
			return err
		}
	}
	if s.table.cat.split {
		s.cfg.Logger.Infof("a crash interrupted the last batch between two transactions")
	}
	if err := s.syncNames(); err != nil {
		return err
	}
	s.table.garbage = s.valueLogGarbage()
	s.releasePages() // without commit: no other goroutine has the store yet
	return s.failed()
}

// fail makes the store fail. Only the first call has an effect.
func (s *store) fail(err error) {
	if !s.failure.CompareAndSwap(nil, &err) {
		return
	}
	if s.cfg.OnFailure != nil {
		go s.cfg.OnFailure(err)
	}
}

// failed returns an error that wraps ErrFailed if the store has failed.
func (s *store) failed() error {
	if err := s.failure.Load(); err != nil {
		return fmt.Errorf("%w: %w", ErrFailed, *err)
	}
	return nil
}

// enter begins a call. It returns ErrClosed if the store is closed. Otherwise the caller must
// call leave.
func (s *store) enter() error {
	s.callsLock.RLock()
	if s.closed {
		s.callsLock.RUnlock()
		return ErrClosed
	}
	return nil
}

func (s *store) leave() { s.callsLock.RUnlock() }

// Commit implements Store.
func (s *store) Commit(b Batch) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	s.commit.Lock()
	defer s.commit.Unlock()
	defer s.merger.begin()()
	if err := s.failed(); err != nil {
		return err
	}
	steps, err := planBatch(b, s.limits)
	if err != nil {
		return err
	}
	for i, st := range steps {
		if err := s.apply(st, i < len(steps)-1); err != nil {
			return err
		}
		if s.touch(len(s.buffer)) {
			s.releasePages()
		}
	}
	return nil
}

// apply commits one step, with the catalogue after it. more is set if other steps of the
// batch follow. Any error makes the store fail.
func (s *store) apply(st step, more bool) error {
	seq := s.seq + 1
	txn := s.db.NewTransactionAt(seq, true)
	defer txn.Discard()
	c, err := s.fill(txn, st)
	if err == nil {
		c.cat = s.table.after(c, seq, more)
		value, _ := appendValue(nil, catalogueKey, c.cat.encode())
		err = txn.Set(catalogueKey, value)
	}
	if err != nil {
		err = fmt.Errorf("commit %d: %w", seq, err)
		s.fail(err)
		return s.failed()
	}
	s.table.begin(c)
	if err := s.send(txn, seq); err != nil {
		return err
	}
	s.table.finish(c)
	return nil
}

// send commits a filled transaction with number seq.
func (s *store) send(txn *badger.Txn, seq uint64) error {
	s.seq = seq
	err := txn.CommitAt(seq, nil)
	if err == nil {
		err = s.syncNames()
	}
	if err != nil {
		s.fail(fmt.Errorf("commit %d: %w", seq, err))
	}
	if err := s.failed(); err != nil {
		return err
	}
	s.db.SetDiscardTs(seq)
	return nil
}

// fill writes a step to a transaction. It returns the change, without a catalogue.
func (s *store) fill(txn *badger.Txn, st step) (change, error) {
	c := change{
		packs: make(map[PackID]*meta, len(st.Put)+len(st.Delete)),
		names: make(map[string]*meta, len(st.Set)+len(st.Unset)),
	}
	s.buffer = grow(s.buffer, st)
	set := func(key []byte, parts ...[]byte) (*meta, error) {
		start := len(s.buffer)
		var crc uint32
		s.buffer, crc = appendValue(s.buffer, key, parts...)
		value := s.buffer[start:len(s.buffer):len(s.buffer)]
		return &meta{crc: crc, size: uint32(len(value))}, txn.Set(key, value)
	}
	var err error
	for _, p := range st.Put {
		if c.packs[p.ID], err = set(packKey(p.ID), p.Parts...); err != nil {
			return c, err
		}
	}
	for _, id := range st.Delete {
		if !s.table.expect(id).has {
			continue
		}
		c.packs[id] = nil
		if err := txn.Delete(packKey(id)); err != nil {
			return c, err
		}
	}
	for _, e := range st.Set {
		if c.names[e.Key], err = set(stateKey(e.Key), e.Value); err != nil {
			return c, err
		}
	}
	for _, name := range st.Unset {
		if _, ok := s.table.names[name]; !ok {
			continue
		}
		c.names[name] = nil
		if err := txn.Delete(stateKey(name)); err != nil {
			return c, err
		}
	}
	return c, nil
}

// grow returns an empty buffer with room for all values of a step: buf, unless it is too
// small or too large to keep.
func grow(buf []byte, st step) []byte {
	var n int64
	for _, p := range st.Put {
		n += valueLen(p.Parts...)
	}
	for _, e := range st.Set {
		n += valueLen(e.Value)
	}
	switch {
	case int64(cap(buf)) < n, cap(buf) > keepBuffer && n <= keepBuffer:
		return make([]byte, 0, n)
	}
	return buf[:0]
}

// syncNames makes the names of new log files durable. Badger syncs the content of a log, but
// not its directory.
func (s *store) syncNames() error {
	files, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	var valueLog, memLog uint32
	for _, f := range files {
		if n, ok := fileNumber(f.Name(), valueLogExt); ok {
			valueLog = max(valueLog, n)
		}
		if n, ok := fileNumber(f.Name(), memLogExt); ok {
			memLog = max(memLog, n)
		}
	}
	if valueLog == s.valueLog && memLog == s.memLog {
		return nil
	}
	if err := syncDir(s.cfg.Dir); err != nil {
		return err
	}
	s.valueLog, s.memLog = valueLog, memLog
	return nil
}

// Load implements Store.
func (s *store) Load(id PackID) ([]byte, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	value, err := s.load(id, nil)
	if err != nil {
		return nil, err
	}
	return value[headerLen:], nil
}

// reader returns a reader of the open database.
func (s *store) reader() *reader {
	return &reader{db: s.db, dir: s.cfg.Dir, faulted: &s.faulted}
}

// load reads a pack into buf, if that is large enough, and checks it. If the pack is
// committed meanwhile, load may return either version.
func (s *store) load(id PackID, buf []byte) ([]byte, error) {
	key := packKey(id)
	r := s.reader()
	for attempt := 1; ; attempt++ {
		before := s.table.expect(id)
		if !before.exists() {
			return nil, &CorruptError{Pack: id, Reason: "pack is not in the catalogue"}
		}
		value, m, err := r.read(key, buf)
		after := s.table.expect(id)
		if err == nil && (before.accepts(m) || after.accepts(m)) {
			if s.touch(len(value)) {
				s.releaseRead()
			}
			return value, nil
		}
		if before != after || attempt < readAttempts {
			continue
		}
		if s.faulted.Load() {
			s.fail(fmt.Errorf("read pack %s: %w", id, err))
		}
		if err == nil {
			err = fmt.Errorf("value has %d bytes and checksum %08x, in the catalogue it has %d bytes and checksum %08x",
				m.size, m.crc, before.now.size, before.now.crc)
		}
		return nil, r.corrupt(id, err)
	}
}

// State implements Store.
func (s *store) State(fn func(Entry) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	s.commit.Lock()
	defer s.commit.Unlock()
	for _, name := range s.table.entryNames() {
		value, err := s.loadState(name)
		if err != nil {
			return err
		}
		if err := fn(Entry{Key: name, Value: value[headerLen:]}); err != nil {
			return err
		}
	}
	return nil
}

// loadState reads a state entry, with its envelope, and checks it. The caller holds commit.
func (s *store) loadState(name string) ([]byte, error) {
	value, m, err := s.reader().retry(stateKey(name))
	if err == nil && m != s.table.names[name] {
		err = errors.New("value has another checksum in the catalogue")
	}
	if err != nil {
		return nil, &CorruptError{Reason: fmt.Sprintf("state %q: %v", name, err)}
	}
	return value, nil
}

// Scan implements Store.
func (s *store) Scan(fn func(PackID, []byte) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	ids := s.table.ids()
	s.leave()
	var buf []byte
	for _, id := range ids {
		value, ok, err := s.scanOne(id, buf)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		buf = value[:0]
		if err := fn(id, value[headerLen:]); err != nil {
			return err
		}
	}
	return nil
}

// scanOne reads one pack of a scan. ok is false if the pack was deleted meanwhile.
func (s *store) scanOne(id PackID, buf []byte) (value []byte, ok bool, err error) {
	if err := s.enter(); err != nil {
		return nil, false, err
	}
	defer s.leave()
	value, err = s.load(id, buf)
	if err != nil && !s.table.expect(id).exists() {
		return nil, false, nil
	}
	return value, err == nil, err
}

// Sizes implements Store.
func (s *store) Sizes() Sizes {
	allocated, err := allocatedBytes(s.cfg.Dir)
	if err != nil {
		s.cfg.Logger.Warnf("sizes: %v", err)
	}
	s.table.mu.RLock()
	defer s.table.mu.RUnlock()
	return Sizes{
		AllocatedBytes: allocated,
		PackBytes:      s.table.cat.packs.bytes,
		Packs:          len(s.table.packs),
		GarbageBytes:   s.table.garbage,
	}
}

// Close implements Store. It returns ErrClosed if the store is closed already.
func (s *store) Close() error {
	s.close()
	s.callsLock.Lock()
	defer s.callsLock.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.closed = true
	s.merger.signal()
	if s.faulted.Load() {
		// Everything committed is durable, so nothing is lost without closing
		// badger.
		return fmt.Errorf("backend: close: badger left open after a read fault: %w", s.failed())
	}
	s.merger.stop()
	err := s.db.Close()
	if err == nil {
		err = syncFile(filepath.Join(s.cfg.Dir, discardName))
	}
	if err != nil {
		return fmt.Errorf("backend: close: %w", err)
	}
	return nil
}

// abandon closes badger after Open has found an error.
func (s *store) abandon() {
	if s.faulted.Load() {
		return
	}
	s.merger.stop()
	if err := guard(s.db.Close); err != nil {
		s.cfg.Logger.Warnf("badger: close: %v", err)
	}
}

// guard calls fn and returns a panic of it, or a fault on a mapped page, as an error.
// Badger's decoders panic on damaged data.
func guard(fn func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			err = &panicError{value: p}
		}
	}()
	return fn()
}

// panicError is a panic in badger.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("badger panicked: %v", e.value) }

// isPanic reports whether guard returned err for a panic.
func isPanic(err error) bool {
	var p *panicError
	return errors.As(err, &p)
}

// reader reads values from a badger database and checks each.
type reader struct {
	db  *badger.DB
	dir string
	// faulted is that of the store; a read that panics sets it.
	faulted *atomic.Bool
	// missing is the logger that finds missing value logs; may be nil.
	missing *missingFile
}

// read returns a checked copy of a value, envelope included. The copy is in buf if that is
// large enough.
func (r *reader) read(key, buf []byte) (value []byte, m meta, err error) {
	err = guard(func() error {
		txn := r.db.NewTransactionAt(math.MaxUint64, false)
		defer txn.Discard()
		item, err := txn.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return errNoKey
		}
		if err != nil {
			return err
		}
		value, err = item.ValueCopy(buf)
		return err
	})
	if isPanic(err) {
		r.faulted.Store(true)
	}
	if err != nil {
		return nil, meta{}, err
	}
	_, crc, err := openValue(key, value)
	return value, meta{crc: crc, size: uint32(len(value))}, err
}

// retry is read with up to readAttempts attempts.
func (r *reader) retry(key []byte) (value []byte, m meta, err error) {
	for range readAttempts {
		if value, m, err = r.read(key, nil); err == nil {
			break
		}
	}
	return value, m, err
}

// corrupt returns the error for a pack that could not be read, with the file that holds it.
func (r *reader) corrupt(id PackID, cause error) *CorruptError {
	file, reason := r.diagnose(cause)
	if file == "" {
		file = r.locate(packKey(id))
	}
	return &CorruptError{Pack: id, File: file, Reason: reason}
}

// diagnose returns the reason of a failed read, and the value log that caused it if that is
// missing.
func (r *reader) diagnose(cause error) (file, reason string) {
	if r.missing != nil && errors.Is(cause, errUnreadable) {
		if fid, ok := r.missing.take(); ok {
			return filepath.Base(valueLogPath(r.dir, fid)), "value log is missing"
		}
	}
	return "", cause.Error()
}

// locate returns the name of the value log with the newest version of a key, as far as the
// records of the logs can be read.
func (r *reader) locate(key []byte) string {
	fids, err := numbered(r.dir, valueLogExt)
	if err != nil {
		return ""
	}
	var file string
	var newest uint64
	for _, fid := range fids {
		path := valueLogPath(r.dir, fid)
		version, ok := findInLog(path, key)
		if ok && version >= newest {
			newest, file = version, filepath.Base(path)
		}
	}
	return file
}

// rebuild reads all state entries and all packs into an empty table, and compares them with
// the catalogue. found is false if there is no catalogue and nothing else.
func (r *reader) rebuild(t *table, onState func(Entry) error, onPack func(PackID, []byte) error) (found bool, err error) {
	found, err = r.readCatalogue(t)
	if err != nil {
		return found, err
	}
	var packs, state fingerprint
	err = r.each(prefixState, func(key, value []byte, m meta, bad error) error {
		name := string(key[1:])
		if errors.Is(bad, ErrNewer) {
			return bad
		}
		if bad != nil {
			file, reason := r.diagnose(bad)
			return &CorruptError{File: file, Reason: fmt.Sprintf("state %q: %s", name, reason)}
		}
		t.names[name] = m
		state.add(stateTerm(name, m.crc), m.size)
		if onState == nil {
			return nil
		}
		return onState(Entry{Key: name, Value: append([]byte(nil), value...)})
	})
	if err != nil {
		return found, err
	}
	if state != t.cat.state {
		return found, stateDamage(t.cat.state, state)
	}
	err = r.each(prefixPack, func(key, value []byte, m meta, bad error) error {
		id, ok := parsePackKey(key)
		if !ok {
			return &CorruptError{Reason: fmt.Sprintf("key %x is not the key of a pack", key)}
		}
		if errors.Is(bad, ErrNewer) {
			return bad
		}
		if bad != nil {
			return r.corrupt(id, bad)
		}
		t.packs[id] = m
		packs.add(packTerm(id, m.crc), m.size)
		if onPack == nil {
			return nil
		}
		return onPack(id, value)
	})
	if err != nil {
		return found, err
	}
	if damage := t.cat.explain(packs, t.packs); damage != nil {
		if damage.Pack != (PackID{}) {
			damage.File = r.locate(packKey(damage.Pack))
		}
		return found, damage
	}
	return found, nil
}

// stateDamage returns the error for state that differs from the catalogue.
func stateDamage(want, found fingerprint) *CorruptError {
	return &CorruptError{Reason: fmt.Sprintf("catalogue has %d state entries of %d bytes, found %d of %d bytes that differ",
		want.count, want.bytes, found.count, found.bytes)}
}

// readCatalogue reads the catalogue into a table.
func (r *reader) readCatalogue(t *table) (found bool, err error) {
	value, _, err := r.read(catalogueKey, nil)
	switch {
	case errors.Is(err, errNoKey):
		return false, nil
	case errors.Is(err, ErrNewer):
		return false, err
	case err == nil:
		t.cat, err = parseCatalogue(value[headerLen:])
	}
	if err != nil {
		return false, &CorruptError{Reason: fmt.Sprintf("catalogue: %v", err)}
	}
	return true, nil
}

// each calls fn with the values whose keys begin with prefix, in order. If a value fails its
// check, fn gets the error as bad.
func (r *reader) each(prefix byte, fn func(key, value []byte, m meta, bad error) error) error {
	var visitErr error
	visiting := false
	err := r.guarded(prefix, &visiting, func(item *badger.Item) error {
		key := item.Key()
		return item.Value(func(value []byte) error {
			content, crc, bad := openValue(key, value)
			visiting = true
			visitErr = fn(key, content, meta{crc: crc, size: uint32(len(value))}, bad)
			visiting = false
			return visitErr
		})
	})
	if visitErr != nil {
		return visitErr
	}
	return err
}

// eachKey calls fn with the keys that begin with prefix, in order, and does not read values.
func (r *reader) eachKey(prefix byte, fn func(*badger.Item)) error {
	return r.guarded(prefix, new(bool), func(item *badger.Item) error {
		fn(item)
		return nil
	})
}

// guarded iterates over the keys that begin with prefix. It returns a panic of badger as
// damage. If visiting is set, the panic came from a visit, and guarded panics too.
func (r *reader) guarded(prefix byte, visiting *bool, fn func(*badger.Item) error) error {
	err := guard(func() error {
		txn := r.db.NewTransactionAt(math.MaxUint64, false)
		defer txn.Discard()
		o := badger.DefaultIteratorOptions
		o.Prefix = []byte{prefix}
		// Values are read in place, through the mapping.
		o.PrefetchValues = false
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if err := fn(it.Item()); err != nil {
				return err
			}
		}
		return nil
	})
	var p *panicError
	if errors.As(err, &p) {
		if *visiting {
			panic(p.value)
		}
		r.faulted.Store(true)
		return &CorruptError{Reason: fmt.Sprintf("reading all keys with prefix %q: %v", prefix, err)}
	}
	if err != nil {
		return fmt.Errorf("backend: read all: %w", err)
	}
	return nil
}

var _ Store = (*store)(nil)
