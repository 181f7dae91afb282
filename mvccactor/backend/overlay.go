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

// An overlay is a temporary directory through which a store is read without being changed.
// When badger opens a directory, it truncates logs and the manifest at the first bad record
// and deletes tables that are not in the manifest, whether a crash or damage is the cause.
// In its read-only mode it does not, but refuses a directory that was not closed. So the
// overlay has links to the tables and value logs, which badger then opens for reading only,
// and copies of the memtable logs and the manifest, truncated to what badger would keep.
//
// How a store is checked through it:
//
//	build       copy the manifest; check and link the tables; link the value logs; copy
//	            the memtable logs. Bad records at an end that a crash explains become
//	            notes, all others damage
//	open        if there is no damage, open the overlay with badger, read-only
//	read        read and check all values, and compare them with the catalogue
//	tailDamage  if the last value log ends in a bad record, check that no live value
//	            follows it
//	cutLastLog  if the store is accepted, truncate that log
type overlay struct {
	dir, tmp string // the store, and the temporary directory
	// notes describe what a crash left and badger would truncate. build adds them.
	notes []string
	// damage lists bad records that badger would truncate although no crash explains
	// them. build adds them. If there are any, the overlay must not be opened.
	damage []Problem
	// lastLog is the name of the last value log, which badger would truncate at the
	// first bad record; empty if there is none. build sets it, and lastLogEnd.
	lastLog    string
	lastLogEnd logEnd
}

func (o *overlay) note(format string, args ...any) {
	o.notes = append(o.notes, fmt.Sprintf(format, args...))
}

// build fills the temporary directory.
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

// file links, copies or skips one file, but no table.
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

// tables checks and links the tables in the manifest. Any others were left by a crash
// while they were being written.
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

// damaged adds a damaged file.
func (o *overlay) damaged(name string, err error) {
	o.damage = append(o.damage, Problem{File: name, Offset: -1, Reason: err.Error()})
}

// link adds a symbolic link to a file of the store.
func (o *overlay) link(name string) error {
	abs, err := filepath.Abs(filepath.Join(o.dir, name))
	if err != nil {
		return err
	}
	return os.Symlink(abs, filepath.Join(o.tmp, name))
}

// copy copies the first size bytes of a file of the store.
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

// last links the last value log and sets lastLogEnd. Whether a bad record at its end is
// damage is decided later, when the live values are known; see tailDamage.
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

// memLog copies the part of a memtable log that badger would keep.
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
				Reason: fmt.Sprintf("bad record with %d transactions after it", later)})
		} else {
			o.note("%s: unfinished transaction at offset %d of %d", name, end.committed, end.size)
		}
	}
	return o.copy(name, end.committed)
}

// manifest copies the part of the manifest that badger would keep.
func (o *overlay) manifest() error {
	data, err := os.ReadFile(filepath.Join(o.dir, manifestName))
	if err != nil {
		return err
	}
	end, damaged := manifestEnd(data)
	switch {
	case damaged:
		o.damage = append(o.damage, Problem{File: manifestName, Offset: int64(end), Reason: "bad record with others after it"})
	case end < len(data):
		o.note("%s: unfinished record at offset %d of %d", manifestName, end, len(data))
	}
	return o.copy(manifestName, int64(end))
}

// open opens the temporary directory, read-only.
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

// asCorrupt returns a *CorruptError for an error with which badger refused what it read,
// and errors of the operating system unchanged.
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

// isSystem reports whether err is an error of the operating system, other than that a file
// does not exist.
func isSystem(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && !errors.Is(err, fs.ErrNotExist)
}

// laterTransactions returns the number of transactions with good records after an offset.
// Badger syncs the log after each transaction, so a crash leaves at most one unfinished;
// two or more mean that an earlier record is damaged.
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

// txnRecord parses a good record at the start of b, if this store may have written it: it
// does not expire, has no user meta, and its key is bounded. For anything else it returns
// length zero, so that the caller can try every offset.
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

// tailDamage returns a *CorruptError if a live value follows a bad record in the last value
// log, where badger would truncate it. An unfinished record that a crash left belongs to a
// transaction that is not in the memtable log, and so it is not live; if a live value
// follows it, the record is damaged.
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
	// If a crash interrupted the rewrite of a value log, a value may exist twice; it is
	// not lost if another copy is good.
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
			"bad record at offset %d with live data after it", o.lastLogEnd.valid)}
	}
	return nil
}

// cutLastLog truncates the last value log after its last good record, and syncs it. Badger
// would truncate it too, without a sync: after another crash the bad record could be back,
// in a log that is no longer the last one. There it would be damage, and the log would never
// be reclaimed.
func (o *overlay) cutLastLog() error {
	if o.lastLog == "" || o.lastLogEnd.clean {
		return nil
	}
	return truncateSync(filepath.Join(o.dir, o.lastLog), o.lastLogEnd.valid)
}

// liveKeys returns the keys, with transaction numbers, of all live values that are large
// enough for a value log.
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

// keysIn returns those of the given keys that occur in a file after an offset.
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
