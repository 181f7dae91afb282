package crashtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// powerCut is the state of a store when the power failed, during a commit.
type powerCut struct {
	// old is the folder some commits before the end, and last is the folder as the
	// running system saw it at the end. The disk has a state between the two.
	old, last image
	// floor is the last transaction before the interrupted commit.
	floor uint64
	// busy is set if a reclaim was writing during that commit.
	busy bool
	// applied is the applied index of the interrupted commit, previous that of the commit
	// before it, which the log relies on.
	applied, previous uint64
	// log is the log's disk.
	log *waltest.MemFS
}

// powerMix makes a state that the disk may have after a power cut. The rules follow the
// order in which badger writes and syncs (v4.9.6):
//
//  1. A write is one transaction, or values that the garbage collection moves. Its large
//     values are written to the value log, which is synced; then its records are written
//     to the memtable log, which is synced (writeRequests). The next write begins after
//     that. So at most one write is incomplete, and its records are on the disk,
//     completely or partially, only if its values are complete. Lost parts read as zeros:
//     a log is a sparse file before it is written.
//  2. A commit may consist of several transactions. Until the last one has returned, the
//     power may fail after any of them.
//  3. If a write finds the memtable full, a new memtable log is created before its
//     records. If its values fill a value log, that is synced and truncated to its length
//     after them, and a new one is created. The store syncs the names after the write; the
//     length is not synced.
//  4. A table is synced before the manifest names it, the manifest is synced after each
//     record (addChanges), and files that are no longer needed are removed after that:
//     flushed memtable logs and merged tables. POSIX does not guarantee that a table's
//     name is durable with its content, but ext4, XFS and btrfs do for new files. So every
//     state of the manifest between the two images is possible, with the files it needs.
//  5. A file is truncated and then removed, and neither is synced: it may still exist, or
//     be empty. But a merge syncs the folder, so that a memtable log whose table was merged
//     is removed.
//  6. The garbage collection removes a value log when its live values were moved by
//     complete writes.
//  7. DISCARD is written through a mapping and may have any mixture of old and new bytes.
type powerMix struct {
	rng *rand.Rand
	cut *powerCut
	img image
	// grain is the unit of loss, a page or a sector, in bytes.
	grain int
	kinds []string // kinds of changes, for the statistics
}

// mix returns a state of the folder that the disk may have, and the kinds of changes.
func (c *powerCut) mix(rng *rand.Rand) (image, []string) {
	m := &powerMix{rng: rng, cut: c, img: image{}, grain: imagePage}
	if rng.IntN(2) == 0 {
		m.grain = imageSector
	}
	for name, f := range c.last {
		m.img[name] = f.clone()
	}
	m.tear()
	m.manifest()
	m.valueLogs()
	m.discard()
	m.emptyNewLogs()
	return m.img, m.kinds
}

func (m *powerMix) chance(n int) bool { return m.rng.IntN(n) == 0 }

func (m *powerMix) did(kind string) { m.kinds = append(m.kinds, kind) }

// tear loses unsynced data of the last commit, or of a part of it: rules 1 to 3.
func (m *powerMix) tear() {
	logs := m.img.names(imageMem)
	name := logs[len(logs)-1]
	log := m.img[name]
	writes := imageWrites(log.data)
	end := imageLogHeader
	if len(writes) > 0 {
		end = writes[len(writes)-1].to
	}
	log.erase(end, len(log.data)) // part of a write that began while the image was taken
	first := len(writes)
	for first > 0 && writes[first-1].txn && writes[first-1].version > m.cut.floor {
		first--
		if m.cut.busy {
			break // writes before the last one are synced
		}
	}
	if first == len(writes) {
		m.did("nothing to tear")
		return
	}
	at := first + m.rng.IntN(len(writes)-first)
	for _, w := range writes[at+1:] {
		m.eraseWrite(log, w)
		m.did("transactions missing")
	}
	w := writes[at]
	_, known := m.cut.old[name]
	fresh := at == 0 && !known
	switch m.rng.IntN(5) {
	case 0:
		m.did("nothing torn")
	case 1, 2:
		from := w.from
		if fresh && m.chance(4) {
			from = 0
		}
		m.loseSome(log, from, w.to)
		m.did("memtable log torn")
	default:
		log.erase(w.from, w.to)
		if fresh {
			m.beingCreated(name)
		}
		m.tearValues(w)
		m.did("value log torn")
	}
	m.emptyLogs()
}

// eraseWrite erases a write.
func (m *powerMix) eraseWrite(log *imageFile, w imageWrite) {
	log.erase(w.from, w.to)
	for _, v := range w.values {
		if f := m.img[v.file]; f != nil {
			f.erase(v.from, v.to)
		}
	}
}

// loseSome erases grains of a range, but not bytes outside that share a grain with it.
func (m *powerMix) loseSome(f *imageFile, from, to int) {
	part := m.rng.Float64()
	lost := false
	for at := from; at < to; {
		next := min(to, (at/m.grain+1)*m.grain)
		if m.rng.Float64() < part {
			f.erase(at, next)
			lost = true
		}
		at = next
	}
	if !lost {
		f.erase(from, min(to, (from/m.grain+1)*m.grain))
	}
}

// tearValues loses parts of a write's values. The log that contains them was then not yet
// truncated to its length, and no later one exists.
func (m *powerMix) tearValues(w imageWrite) {
	for _, v := range w.values {
		f := m.img[v.file]
		if f == nil {
			continue
		}
		for _, later := range m.img.names(imageVlog) {
			if imageNumber(later) > imageNumber(v.file) {
				delete(m.img, later)
				f.size = 2 * powerValueLogBytes
			}
		}
		m.loseSome(f, v.from, v.to)
	}
}

// beingCreated changes a file into one that was being created.
func (m *powerMix) beingCreated(name string) {
	switch m.rng.IntN(4) {
	case 0:
		delete(m.img, name)
	case 1:
		m.img[name] = &imageFile{}
	case 2:
		m.img[name] = &imageFile{size: m.img[name].size}
	}
}

// emptyLogs removes new, empty value logs, which may not exist yet.
func (m *powerMix) emptyLogs() {
	for _, name := range m.img.names(imageVlog) {
		if _, known := m.cut.old[name]; !known && len(imageRecords(m.img[name].data)) == 0 {
			m.beingCreated(name)
		}
	}
}

// manifest draws how much of the manifest exists, and changes tables and memtable logs
// accordingly: rules 4 and 5.
func (m *powerMix) manifest() {
	last, old := m.cut.last[imageManifest].data, m.cut.old[imageManifest].data
	records := imageChanges(last)
	kept, since := len(records), len(imageChanges(old))
	if m.mayKeepOld(last, old) && m.chance(2) {
		kept = since
		for kept+1 < len(records) && m.chance(2) && !imageMerges(records[since:kept+1]) && m.haveTables(records[:kept+1]) {
			kept++
		}
		m.did("earlier manifest")
	}
	end := imageManifestHeader
	if kept > 0 {
		end = records[kept-1].to
	}
	manifest := slices.Clone(last[:end])
	if m.chance(3) {
		manifest = append(manifest, m.tornRecord(last, records, kept)...)
		m.did("torn manifest")
	}
	m.img[imageManifest] = &imageFile{manifest, int64(len(manifest))}
	m.tables(imageTables(records[:kept]))
	m.memtableLogs(kept < len(records), imageMerges(records[since:]))
}

// mayKeepOld reports whether the images have all files that the earlier manifest needs:
// its tables, and the memtable logs that were flushed since, with their last records.
func (m *powerMix) mayKeepOld(last, old []byte) bool {
	if len(old) == len(last) || !bytes.HasPrefix(last, old) || len(imageChanges(old)) == 0 && len(old) > imageManifestHeader {
		return false
	}
	if !m.haveTables(imageChanges(old)) {
		return false
	}
	had, has := m.cut.old.names(imageMem), m.cut.last.names(imageMem)
	if m.removed(had[len(had)-1]) {
		return false // it was written after the image
	}
	for n := imageNumber(had[0]); n < imageNumber(has[len(has)-1]); n++ {
		name := fmt.Sprintf("%05d%s", n, imageMem)
		if m.cut.old[name] == nil && m.removed(name) {
			return false
		}
	}
	return true
}

// removed reports whether a file was removed, or being removed, at the end.
func (m *powerMix) removed(name string) bool {
	f := m.cut.last[name]
	return f == nil || f.size == 0
}

// haveTables reports whether the images have the tables that the records name: a table may
// have been created and merged between the two images.
func (m *powerMix) haveTables(records []imageChange) bool {
	for name := range imageTables(records) {
		if m.table(name) == nil {
			return false
		}
	}
	return true
}

// table returns a complete table. A table that the old manifest does not name may have been
// incomplete when the old image was taken.
func (m *powerMix) table(name string) *imageFile {
	if !m.removed(name) {
		return m.cut.last[name]
	}
	if imageTables(imageChanges(m.cut.old[imageManifest].data))[name] {
		return m.cut.old[name]
	}
	return nil
}

// tornRecord returns a possible remnant of the record after the last valid one: a part of
// it, or zeros.
func (m *powerMix) tornRecord(manifest []byte, records []imageChange, kept int) []byte {
	if len(records) == 0 {
		return nil
	}
	i := min(kept, len(records)-1)
	from := imageManifestHeader
	if i > 0 {
		from = records[i-1].to
	}
	record := manifest[from:records[i].to]
	part := record[:1+m.rng.IntN(len(record)-1)]
	if m.chance(3) {
		return make([]byte, len(part))
	}
	return part
}

// tables keeps the tables that the manifest names. Others were being created or removed.
func (m *powerMix) tables(named map[string]bool) {
	for _, from := range []image{m.cut.old, m.cut.last} {
		for _, name := range from.names(imageTable) {
			delete(m.img, name)
			if named[name] {
				m.img[name] = m.table(name).clone()
				continue
			}
			switch f := from[name].clone(); m.rng.IntN(4) {
			case 0:
				m.img[name] = &imageFile{}
			case 1:
				m.img[name] = f
			case 2:
				m.loseSome(f, 0, len(f.data))
				m.img[name] = f
			default:
				continue
			}
			m.did("table of no manifest")
		}
	}
}

// memtableLogs restores memtable logs that were removed since the old image.
func (m *powerMix) memtableLogs(needed, merged bool) {
	had := m.cut.old.names(imageMem)
	for i, name := range had {
		if !m.removed(name) {
			continue
		}
		complete := i < len(had)-1
		choice := m.rng.IntN(3)
		switch {
		case needed, choice == 0 && complete && !merged:
			m.img[name] = m.cut.old[name].clone()
		case choice == 1:
			m.img[name] = &imageFile{}
		default:
			delete(m.img, name)
			continue
		}
		m.did("memtable log back")
	}
}

// valueLogs restores removed value logs, and lengths from before a truncation: rules 3
// and 6.
func (m *powerMix) valueLogs() {
	for _, name := range m.cut.old.names(imageVlog) {
		switch f, was := m.img[name], m.cut.old[name]; {
		case m.removed(name):
			delete(m.img, name)
			if m.chance(3) {
				m.img[name] = was.clone()
				m.did("value log back")
			} else if m.chance(2) {
				m.img[name] = &imageFile{}
				m.did("value log back")
			}
		case f != nil && f.size < was.size && m.chance(2):
			f.size = was.size
			m.did("value log uncut")
		}
	}
}

// discard mixes the garbage statistics: rule 7.
func (m *powerMix) discard() {
	f, old := m.img[imageDiscard], m.cut.old[imageDiscard]
	if f == nil || old == nil {
		return
	}
	for at := 0; at < len(f.data); at += m.grain {
		to := min(at+m.grain, len(f.data))
		switch m.rng.IntN(3) {
		case 0:
			f.erase(at, to)
		case 1:
			f.erase(at, to)
			if at < len(old.data) {
				copy(f.data[at:to], old.data[at:])
			}
		}
	}
}

// emptyNewLogs adds logs that were about to be created: rules 3 and 5.
func (m *powerMix) emptyNewLogs() {
	if !m.chance(4) {
		return
	}
	for ext, form := range map[string]string{imageMem: "%05d%s", imageVlog: "%06d%s"} {
		logs := m.img.names(ext)
		if len(logs) == 0 {
			continue
		}
		for _, n := range []int{imageNumber(logs[0]) - 1, imageNumber(logs[len(logs)-1]) + 1} {
			if name := fmt.Sprintf(form, n, ext); n > 0 && m.img[name] == nil {
				m.img[name] = &imageFile{}
			}
		}
	}
	m.did("empty logs")
}
