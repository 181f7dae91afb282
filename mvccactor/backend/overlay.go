package backend

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"

	"github.com/dgraph-io/badger/v4"
)

// An overlay is a temporary folder through which a store is read without being
// changed. Badger repairs while it opens: it cuts logs and the manifest at the
// first bad record and deletes tables that the manifest does not name, damage or
// not. In its read-only mode it does none of that, but refuses a folder that was
// not closed. So the overlay links to the tables and value logs, which are then
// opened for reading only, and holds copies of the memtable logs and of the
// manifest, cut to what badger would keep.
type overlay struct {
	dir, tmp string
	// notes tell what a crash left and badger will cut.
	notes []string
	// damage is what badger would cut though it is no remnant of a crash.
	damage []Problem
	// lastLog is the value log that badger would cut at the first bad record.
	lastLog    string
	lastLogEnd logEnd
}

func (o *overlay) note(format string, args ...any) {
	o.notes = append(o.notes, fmt.Sprintf(format, args...))
}

// build fills the temporary folder.
func (o *overlay) build() error {
	if err := o.manifest(); err != nil {
		return err
	}
	if err := o.tables(); err != nil {
		return err
	}
	fids, err := numbered(o.dir, valueLogExt)
	if err != nil {
		return err
	}
	if len(fids) > 0 {
		o.lastLog = filepath.Base(valueLogPath(o.dir, highest(fids)))
	}
	files, err := os.ReadDir(o.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			return err
		}
		if err := o.file(f.Name(), info.Size()); err != nil {
			return err
		}
	}
	return nil
}

func (o *overlay) file(name string, size int64) error {
	ext := filepath.Ext(name)
	switch {
	case (ext == valueLogExt || ext == memLogExt) && size == 0:
		o.note("%s: log of length zero left by a crash", name)
		return nil
	case name == o.lastLog:
		return o.last(name)
	case ext == valueLogExt:
		return o.link(name)
	case ext == memLogExt:
		return o.memLog(name)
	case name == badger.KeyRegistryFileName:
		return o.copy(name, size)
	}
	return nil
}

// tables checks and links the tables that the manifest names. Others are what a
// crash left of one that was being written.
func (o *overlay) tables() error {
	if len(o.damage) > 0 {
		return nil // the manifest cannot be trusted
	}
	f, err := os.Open(filepath.Join(o.tmp, manifestName))
	if err != nil {
		return err
	}
	defer f.Close()
	manifest, _, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions("").WithLogger(nil))
	if err != nil {
		o.damaged(manifestName, err)
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(manifest.Tables)) {
		name := fmt.Sprintf("%06d%s", id, tableExt)
		err := checkTableFile(filepath.Join(o.dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			o.damaged(name, errors.New("table is missing"))
		case isSystem(err):
			return err
		case err != nil:
			o.damaged(name, err)
		default:
			err = o.link(name)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *overlay) damaged(name string, err error) {
	o.damage = append(o.damage, Problem{File: name, Offset: -1, Reason: err.Error()})
}

func (o *overlay) link(name string) error {
	abs, err := filepath.Abs(filepath.Join(o.dir, name))
	if err != nil {
		return err
	}
	return os.Symlink(abs, filepath.Join(o.tmp, name))
}

func (o *overlay) copy(name string, size int64) error {
	in, err := os.Open(filepath.Join(o.dir, name))
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(o.tmp, name))
	if err != nil {
		return err
	}
	_, err = io.CopyN(out, in, size)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// last looks at the end of the last value log. Whether what badger would cut is
// damage shows only when it is known which values are alive; see tailDamage.
func (o *overlay) last(name string) (err error) {
	o.lastLogEnd, err = walkLog(filepath.Join(o.dir, name), nil)
	if err != nil {
		return err
	}
	if !o.lastLogEnd.clean {
		o.note("%s: unfinished record at offset %d of %d", name, o.lastLogEnd.valid, o.lastLogEnd.size)
	}
	return o.link(name)
}

// memLog copies what badger would keep of a memtable log.
func (o *overlay) memLog(name string) error {
	path := filepath.Join(o.dir, name)
	end, err := walkLog(path, nil)
	if err != nil {
		return err
	}
	if !end.clean || end.valid != end.committed {
		later, err := laterTransactions(path, end.committed)
		if err != nil {
			return err
		}
		if later > 1 {
			o.damage = append(o.damage, Problem{File: name, Offset: end.valid,
				Reason: fmt.Sprintf("bad record with %d transactions behind it", later)})
		} else {
			o.note("%s: unfinished transaction at offset %d of %d", name, end.committed, end.size)
		}
	}
	return o.copy(name, end.committed)
}

func (o *overlay) manifest() error {
	data, err := os.ReadFile(filepath.Join(o.dir, manifestName))
	if err != nil {
		return err
	}
	end, damaged := manifestEnd(data)
	switch {
	case damaged:
		o.damage = append(o.damage, Problem{File: manifestName, Offset: int64(end), Reason: "bad record with others behind it"})
	case end < len(data):
		o.note("%s: half-written record at offset %d of %d", manifestName, end, len(data))
	}
	return o.copy(manifestName, int64(end))
}

// open opens the temporary folder.
func (o *overlay) open(memTable int64, log Logger) (*badger.DB, error) {
	bridge := &logBridge{log: log, fail: func(error) {}}
	cfg, err := Config{Dir: o.tmp, MemTableBytes: memTable}.withDefaults()
	if err != nil {
		return nil, err
	}
	options := badgerOptions(cfg, bridge)
	options.ReadOnly = true
	db, err := openBadger(options, log)
	if err != nil {
		return nil, asCorrupt(err)
	}
	if path := bridge.ignoredTable(); path != "" {
		if cerr := guard(db.Close); cerr != nil {
			log.Warnf("badger: close: %v", cerr)
		}
		return nil, &CorruptError{File: filepath.Base(path), Reason: "table has a bad checksum"}
	}
	return db, nil
}

var dataFile = regexp.MustCompile(`\d+\.(sst|vlog|mem)\b|MANIFEST|KEYREGISTRY`)

// asCorrupt tells damage from trouble with the system: badger's complaints about
// what it reads are plain errors, those of the system are not.
func asCorrupt(err error) error {
	if isSystem(err) {
		return err
	}
	file := dataFile.FindString(err.Error())
	if errors.Is(err, badger.ErrEncryptionKeyMismatch) {
		file = badger.KeyRegistryFileName
	}
	return &CorruptError{File: file, Reason: err.Error()}
}

// isSystem tells errors of the operating system other than that a file is
// missing.
func isSystem(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && !errors.Is(err, fs.ErrNotExist)
}

// laterTransactions counts the transactions that have good records behind
// offset from. Badger syncs the log after each transaction, so that a crash
// leaves at most one unfinished; two mean that an older record is damaged.
func laterTransactions(path string, from int64) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	versions := make(map[uint64]struct{})
	for at := from; at < int64(len(data)); {
		n, meta, version := txnRecord(data[at:])
		if n == 0 {
			at++
			continue
		}
		if meta&(logMetaTxn|logMetaFin) != 0 {
			versions[version] = struct{}{}
		}
		at += n
	}
	return len(versions), nil
}

// txnRecord parses a good record as this store writes them: nothing expires, no
// user meta, bounded keys. It returns length zero for anything else, so that it
// can be tried at every offset.
func txnRecord(b []byte) (n int64, meta byte, version uint64) {
	if len(b) < 8 || b[1] != 0 || b[0] == 0 {
		return 0, 0, 0
	}
	klen, k := binary.Uvarint(b[2:])
	if k <= 0 || klen < logVersionLen || klen > 1+maxNameLen+logVersionLen {
		return 0, 0, 0
	}
	vlen, v := binary.Uvarint(b[2+k:])
	if v <= 0 || vlen > valueThreshold {
		return 0, 0, 0
	}
	head := uint64(2 + k + v + 1)
	body := head + klen + vlen
	if uint64(len(b)) < body+crc32.Size || b[head-1] != 0 {
		return 0, 0, 0
	}
	if crc32.Checksum(b[:body], castagnoli) != binary.BigEndian.Uint32(b[body:]) {
		return 0, 0, 0
	}
	return int64(body) + crc32.Size, b[0], ^binary.BigEndian.Uint64(b[head+klen-logVersionLen:])
}

// tailDamage reports a live value that badger would cut off with the end of the
// last value log. What a crash left unfinished there belongs to a transaction
// that is not in the memtable log; a live value behind a bad record means that
// the record is damaged.
func (o *overlay) tailDamage(r *reader) error {
	if o.lastLog == "" || o.lastLogEnd.clean {
		return nil
	}
	live, err := r.liveKeys()
	if err != nil {
		return err
	}
	suspects, err := keysIn(filepath.Join(o.dir, o.lastLog), o.lastLogEnd.valid, live)
	if err != nil {
		return err
	}
	// A value that the collection was moving when the crash came is there twice.
	fids, err := numbered(o.dir, valueLogExt)
	if err != nil {
		return err
	}
	for _, fid := range fids {
		if len(suspects) == 0 {
			return nil
		}
		_, err := walkLog(valueLogPath(o.dir, fid), func(rec *logRecord) error {
			delete(suspects, string(rec.key))
			return nil
		})
		if err != nil {
			return err
		}
	}
	for key := range suspects {
		id, _ := parsePackKey([]byte(key)[:len(key)-logVersionLen])
		return &CorruptError{Pack: id, File: o.lastLog, Reason: fmt.Sprintf(
			"bad record at offset %d with live data behind it", o.lastLogEnd.valid)}
	}
	return nil
}

// cutLastLog cuts off what a crash left at the end of the last value log. Badger
// does so too, but does not sync it: after another crash it could be back, in a
// log that is no longer the last one, and there it is damage, for which the log is
// never collected.
func (o *overlay) cutLastLog() error {
	if o.lastLog == "" || o.lastLogEnd.clean {
		return nil
	}
	return truncateSync(filepath.Join(o.dir, o.lastLog), o.lastLogEnd.valid)
}

// liveKeys returns the keys, with transaction numbers, of all values that may
// live in a value log.
func (r *reader) liveKeys() (map[string]struct{}, error) {
	live := make(map[string]struct{})
	for _, prefix := range []byte{prefixPack, prefixState} {
		err := r.eachKey(prefix, func(item *badger.Item) {
			if item.ValueSize() >= valueThreshold {
				key := binary.BigEndian.AppendUint64(item.KeyCopy(nil), ^item.Version())
				live[string(key)] = struct{}{}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return live, nil
}

// keysIn returns those of the keys that occur in a file from an offset on.
func keysIn(path string, from int64, keys map[string]struct{}) (map[string]struct{}, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	byName := make([]string, 0)
	for key := range keys {
		if key[0] == prefixState {
			byName = append(byName, key)
		}
	}
	found := make(map[string]struct{})
	const overlap = 1 + maxNameLen + logVersionLen
	buf := make([]byte, logReadBuffer)
	for at := from; ; at += int64(len(buf) - overlap) {
		n, err := f.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return nil, err
		}
		chunk := buf[:n]
		for i := 0; i+packKeyLen+logVersionLen <= n; i++ {
			if chunk[i] != prefixPack {
				continue
			}
			if key := chunk[i : i+packKeyLen+logVersionLen]; has(keys, key) {
				found[string(key)] = struct{}{}
			}
		}
		for _, key := range byName {
			if bytes.Contains(chunk, []byte(key)) {
				found[key] = struct{}{}
			}
		}
		if err == io.EOF {
			return found, nil
		}
	}
}

func has(keys map[string]struct{}, key []byte) bool {
	_, ok := keys[string(key)]
	return ok
}
