package crashtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// powerCut is what is known of a store at the moment the power failed, in the
// midst of a commit.
type powerCut struct {
	// old is the folder as it was some commits before the end, and last as the
	// running system saw it at the end. What the disk holds is something between.
	old, last image
	// floor is the last transaction before the commit under way.
	floor uint64
	// busy is set when a reclaim wrote beside that commit.
	busy bool
	// applied is what the commit under way says is applied, told what the one
	// before it said: what the log relies on.
	applied, told uint64
	// log is the log's disk, to be crashed.
	log *waltest.MemFS
}

// powerMix makes a state that the disk can be in after a power cut. The rules
// follow the order in which badger writes and syncs (v4.9.6):
//
//  1. A write is one transaction, or values that the collection moves. Its large
//     values go to the value log, which is synced; then its records go to the
//     memtable log, which is synced (writeRequests). The next one begins after
//     that. So at most one write is incomplete, and its records are on the disk,
//     whole or in part, only when its values are whole. What is lost reads as
//     zeros: a log is a sparse file before it is written.
//  2. A commit may take several transactions. Until the last of them has
//     returned, the power may fail after any.
//  3. Before the records of a write that finds the memtable full, a new memtable
//     log is made; behind the values that fill a value log, that is synced, cut to
//     its length, and a new one made. The store syncs the names after the write,
//     and nobody the length.
//  4. A table is synced before the manifest names it, the manifest is synced after
//     each record (addChanges), and files that it makes superfluous go after that:
//     the memtable logs that were flushed, the tables that were merged. That a
//     table's name is durable with its content is no promise of POSIX, but one of
//     ext4, XFS and btrfs for a file that is new. Thus every state of the manifest
//     between then and now is possible, with the files it needs.
//  5. A file goes in two steps, truncation and removal, and neither is synced: it
//     may still be there, or be empty. But a merge syncs the folder, so that a
//     memtable log whose table was merged is gone.
//  6. The collection removes a value log when what lived in it was moved by writes
//     that are complete.
//  7. DISCARD is written through a mapping and may have any mixture.
type powerMix struct {
	rng *rand.Rand
	cut *powerCut
	img image
	// grain is what is lost at once: a page or a sector, in bytes.
	grain int
	kinds []string // what was done, for the statistics
}

// mix returns a folder as the disk may hold it, and what was done to it.
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
	m.litter()
	return m.img, m.kinds
}

func (m *powerMix) chance(n int) bool { return m.rng.IntN(n) == 0 }

func (m *powerMix) did(kind string) { m.kinds = append(m.kinds, kind) }

// tear loses what the last commit, or a part of it, had not synced: rules 1 to 3.
func (m *powerMix) tear() {
	logs := m.img.names(imageMem)
	name := logs[len(logs)-1]
	log := m.img[name]
	writes := imageWrites(log.data)
	end := imageLogHeader
	if len(writes) > 0 {
		end = writes[len(writes)-1].to
	}
	log.erase(end, len(log.data)) // of a write that began while the image was taken
	first := len(writes)
	for first > 0 && writes[first-1].txn && writes[first-1].version > m.cut.floor {
		first--
		if m.cut.busy {
			break // those before the last one are synced
		}
	}
	if first == len(writes) {
		m.did("nothing to tear")
		return
	}
	at := first + m.rng.IntN(len(writes)-first)
	for _, w := range writes[at+1:] {
		m.lose(log, w)
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
			m.unborn(name)
		}
		m.tearValues(w)
		m.did("value log torn")
	}
	m.emptyLogs()
}

// lose takes a write away.
func (m *powerMix) lose(log *imageFile, w imageWrite) {
	log.erase(w.from, w.to)
	for _, v := range w.values {
		if f := m.img[v.file]; f != nil {
			f.erase(v.from, v.to)
		}
	}
}

// loseSome takes grains of a range away, but not what shares a grain with it.
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

// tearValues loses parts of a write's values. Then the log they are in was not
// yet cut to its length, and there is none behind it.
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

// unborn makes a file one whose creation was under way.
func (m *powerMix) unborn(name string) {
	switch m.rng.IntN(4) {
	case 0:
		delete(m.img, name)
	case 1:
		m.img[name] = &imageFile{}
	case 2:
		m.img[name] = &imageFile{size: m.img[name].size}
	}
}

// emptyLogs lets new value logs without content not be there yet.
func (m *powerMix) emptyLogs() {
	for _, name := range m.img.names(imageVlog) {
		if _, known := m.cut.old[name]; !known && len(imageRecords(m.img[name].data)) == 0 {
			m.unborn(name)
		}
	}
}

// manifest chooses how much of the manifest is there, and what follows from it
// for tables and memtable logs: rules 4 and 5.
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

// mayKeepOld tells whether the images have all files that the earlier manifest
// needs: its tables, and the memtable logs that were flushed since, as they were
// when the last record was in.
func (m *powerMix) mayKeepOld(last, old []byte) bool {
	if len(old) == len(last) || !bytes.HasPrefix(last, old) || len(imageChanges(old)) == 0 && len(old) > imageManifestHeader {
		return false
	}
	if !m.haveTables(imageChanges(old)) {
		return false
	}
	had, has := m.cut.old.names(imageMem), m.cut.last.names(imageMem)
	if m.gone(had[len(had)-1]) {
		return false // it went on after the image
	}
	for n := imageNumber(had[0]); n < imageNumber(has[len(has)-1]); n++ {
		name := fmt.Sprintf("%05d%s", n, imageMem)
		if m.cut.old[name] == nil && m.gone(name) {
			return false
		}
	}
	return true
}

// gone tells whether a file was removed, or being removed, at the end.
func (m *powerMix) gone(name string) bool {
	f := m.cut.last[name]
	return f == nil || f.size == 0
}

// haveTables tells whether the images have the tables that records name: one may
// have been made and merged between the two.
func (m *powerMix) haveTables(records []imageChange) bool {
	for name := range imageTables(records) {
		if m.table(name) == nil {
			return false
		}
	}
	return true
}

// table returns a table as it was when it was whole. One that the old manifest
// does not name may still have been written when the old image was taken.
func (m *powerMix) table(name string) *imageFile {
	if !m.gone(name) {
		return m.cut.last[name]
	}
	if imageTables(imageChanges(m.cut.old[imageManifest].data))[name] {
		return m.cut.old[name]
	}
	return nil
}

// tornRecord is what there may be of the record behind the last good one: a part
// of it, or zeros in its place.
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

// tables keeps those that the manifest names. Others were being made, or removed.
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

// memtableLogs brings those back that were removed since the old image.
func (m *powerMix) memtableLogs(needed, merged bool) {
	had := m.cut.old.names(imageMem)
	for i, name := range had {
		if !m.gone(name) {
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

// valueLogs brings removed ones back, and lengths from before a cut: rules 3 and
// 6.
func (m *powerMix) valueLogs() {
	for _, name := range m.cut.old.names(imageVlog) {
		switch f, was := m.img[name], m.cut.old[name]; {
		case m.gone(name):
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

// discard mixes the statistics of garbage: rule 7.
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

// litter adds logs that were about to be made: rules 3 and 5.
func (m *powerMix) litter() {
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
