package crashtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc/mvcctest"
	"github.com/troupe-db/troupe/walactor/wal"
)

var damagedBytes = flag.Int("damaged-bytes", imageShortRound, "damaged copies of a data directory in TestDamagedImage")

// imageKinds are the kinds of files in a data directory, and imageShortRound is the number
// of changed bytes after which each kind was used: a stopped and a killed member take
// turns, and some kinds exist in only one of them.
var imageKinds = []string{imageDiscard, imageRegistry, imageLock, imageManifest, "ballast", "identity.json",
	imageMem, ".spare", imageTable, imageVlog, ".wal"}

const imageShortRound = 44

// imageMember is a copy of the data directory of a member, and the data that the member
// must serve from it.
type imageMember struct {
	member, db, wal image
	model           *mvcctest.Model
}

// imageFolders are the folders in a data directory.
var imageFolders = []string{"member", "member/db", "member/wal"}

func (m *imageMember) folders() []image { return []image{m.member, m.db, m.wal} }

// write creates a data directory.
func (m *imageMember) write(dir string) error {
	for i, img := range m.folders() {
		if err := img.write(filepath.Join(dir, imageFolders[i])); err != nil {
			return err
		}
	}
	return nil
}

// imageMembers makes the images of a stopped and of a killed member, once.
var imageMembers = map[bool]*imageMember{}

func imageMemberOf(t *testing.T, killed bool) *imageMember {
	t.Helper()
	if imageMembers[killed] == nil {
		imageMembers[killed] = makeImageMember(t, killed)
	}
	return imageMembers[killed]
}

// makeImageMember runs a member and copies its data directory, after a graceful stop or as
// after kill -9, with acknowledged requests that only the log contains.
func makeImageMember(t *testing.T, killed bool) *imageMember {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	p := &powerTest{t: t, rng: rand.New(rand.NewPCG(4, 22)), model: mvcctest.New()}
	m, err := startPower(dir, nil, nil)
	p.must(m, err)
	p.ready(m, nil)
	work := func(requests int) {
		for range requests {
			if !p.propose(m, p.request()) {
				t.Fatalf("no answer\n%s", m.log)
			}
			p.pause()
		}
	}
	work(250)
	p.must(m, m.Reclaim(t.Context()))
	work(100)
	p.spin(m, nil)                     // marks the log at the last commit
	time.Sleep(200 * time.Millisecond) // time for the store to catch up and for spares
	img := &imageMember{}
	take := func() {
		for i, to := range []*image{&img.member, &img.db, &img.wal} {
			*to, err = imageOf(filepath.Join(dir, imageFolders[i]))
			p.must(m, err)
		}
	}
	if killed {
		m.store.mu.Lock() // prevents further commits
		work(30)
		take()
		m.store.mu.Unlock()
	}
	p.must(m, m.stop())
	if !killed {
		take()
	}
	img.model = p.model
	return img
}

// imageKind returns the kind of a file, by its extension or its name.
func imageKind(name string) string {
	if ext := filepath.Ext(name); ext != "" && ext != ".json" {
		return ext
	}
	return name
}

// imageTarget is a file in which a byte may be changed.
type imageTarget struct {
	folder int
	name   string
}

// targets returns the files by kind.
func (m *imageMember) targets() map[string][]imageTarget {
	kinds := map[string][]imageTarget{}
	for i, img := range m.folders() {
		for _, name := range slices.Sorted(maps.Keys(img)) {
			if img[name].size > 0 {
				kinds[imageKind(name)] = append(kinds[imageKind(name)], imageTarget{i, name})
			}
		}
	}
	return kinds
}

// imageEndBytes is the size of the end of a file, where damage may look like an unfinished
// write.
const imageEndBytes = 2000

// offset draws the offset of a byte in a written page; often near the end of the written
// part, sometimes anywhere.
func (f *imageFile) offset(rng *rand.Rand) int64 {
	var pages []int
	for p := 0; p*imagePage < len(f.data); p++ {
		if f.written(int64(p * imagePage)) {
			pages = append(pages, p)
		}
	}
	if len(pages) == 0 || rng.IntN(8) == 0 {
		return rng.Int64N(f.size)
	}
	if rng.IntN(3) == 0 {
		end := len(bytes.TrimRight(f.data, "\x00"))
		return int64(end - 1 - rng.IntN(min(end, imageEndBytes)))
	}
	from := pages[rng.IntN(len(pages))] * imagePage
	return int64(from + rng.IntN(min(imagePage, len(f.data)-from)))
}

// written reports whether the page of an offset has any byte but zeros.
func (f *imageFile) written(at int64) bool {
	from := int(at) / imagePage * imagePage
	return from < len(f.data) && !imageIsZero(f.data[from:min(from+imagePage, len(f.data))])
}

// change returns the file with one byte changed.
func (f *imageFile) change(at int64, rng *rand.Rand) *imageFile {
	c := &imageFile{f.extend(at + 1), f.size}
	if rng.IntN(2) == 0 {
		c.data[at] ^= 1 << rng.IntN(8)
	} else {
		c.data[at] += byte(1 + rng.IntN(255))
	}
	return c
}

// imageOutcomes counts the outcomes of damaged images.
type imageOutcomes struct {
	mu     sync.Mutex
	kinds  map[string]bool
	counts map[string]int
}

func (o *imageOutcomes) add(kind string, written bool, what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kinds[kind] = true
	if !written {
		kind += ", where nothing was written"
	}
	o.counts[kind+": "+what]++
}

// TestDamagedImage changes one byte of a member's data directory and starts the member.
// Either the start fails with an error that names the file, or the member serves
// everything that was acknowledged, at every revision and with the right hash, and
// nothing else.
//
// Damage that looks like an unfinished write of the store makes the start fail too, but
// the error names another file, which does not match; see looksUnfinished.
func TestDamagedImage(t *testing.T) {
	images := map[string]*imageMember{"stopped": imageMemberOf(t, false), "killed": imageMemberOf(t, true)}
	out := &imageOutcomes{kinds: map[string]bool{}, counts: map[string]int{}}
	began := time.Now()
	t.Run("all", func(t *testing.T) {
		// A few in parallel: they mostly wait for the disk.
		const lanes = 4
		for lane := range lanes {
			t.Run(fmt.Sprint(lane), func(t *testing.T) {
				t.Parallel()
				for n := lane; n < *damagedBytes; n += lanes {
					for _, state := range []string{"stopped", "killed"}[n%2 : n%2+1] {
						damageOne(t, state, images[state], n/2, out)
					}
				}
			})
		}
	})
	t.Logf("%d damaged bytes in %v", *damagedBytes, time.Since(began).Round(time.Second))
	for _, what := range slices.Sorted(maps.Keys(out.counts)) {
		t.Logf("%6d %s", out.counts[what], what)
	}
	if kinds := slices.Sorted(maps.Keys(out.kinds)); *damagedBytes >= imageShortRound && !slices.Equal(kinds, slices.Sorted(slices.Values(imageKinds))) {
		t.Errorf("changed were files of the kinds %v, there should be %v", kinds, imageKinds)
	}
}

// damageOne changes a byte of a file of the n-th kind and checks the start.
func damageOne(t *testing.T, state string, img *imageMember, n int, out *imageOutcomes) {
	t.Helper()
	rng := rand.New(rand.NewPCG(uint64(n), 23))
	targets := img.targets()
	kinds := slices.Sorted(maps.Keys(targets))
	kind := kinds[n%len(kinds)]
	target := targets[kind][len(targets[kind])-1] // the newest, in half of the cases
	if rng.IntN(2) == 0 {
		target = targets[kind][rng.IntN(len(targets[kind]))]
	}
	file := img.folders()[target.folder][target.name]
	at := file.offset(rng)
	written := file.written(at)
	damaged := *img
	for i, to := range []*image{&damaged.member, &damaged.db, &damaged.wal} {
		if i == target.folder {
			*to = maps.Clone(*to)
			(*to)[target.name] = file.change(at, rng)
		}
	}
	what := fmt.Sprintf("%s member, %s changed at %d", state, target.name, at)
	dir := filepath.Join(t.TempDir(), "data")
	if err := damaged.write(dir); err != nil {
		t.Fatal(err)
	}
	err := serveImage(t, dir, img.model, what)
	if err != nil {
		damaged.db.checkUntouched(t, powerStoreDir(dir), what)
	}
	switch {
	case err == nil:
		out.add(kind, written, "served")
	case strings.Contains(err.Error(), target.name):
		out.add(kind, written, "refused")
	case kind == "identity.json" && (errors.Is(err, wal.ErrWrongMember) || errors.Is(err, wal.ErrWrongCluster)):
		// The identity is now another member's, and the error names the log's.
		out.add(kind, written, "refused, because the log is another member's")
	case img.looksUnfinished(target, at) && errors.Is(err, core.ErrStoreBehind):
		out.add(kind, written, "refused, because the log begins later")
	case img.looksUnfinished(target, at) && imageNamed.MatchString(err.Error()):
		out.add(kind, written, "refused, naming a file that does not fit what is left")
	default:
		t.Errorf("%s: refused without naming the file: %v", what, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

// checkUntouched checks that a failed start did not change the folder of the store.
func (img image) checkUntouched(t *testing.T, dir, what string) {
	t.Helper()
	now, err := imageOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	same := func(a, b *imageFile) bool {
		size := max(len(a.data), len(b.data))
		return a.size == b.size && bytes.Equal(a.extend(int64(size)), b.extend(int64(size)))
	}
	if !maps.EqualFunc(img, now, same) {
		t.Errorf("%s: refused, but the store is not as it was:\n%s\nbefore:\n%s", what, now.describe(), img.describe())
	}
}

// imageNamed finds the name of one of the store's files in an error.
var imageNamed = regexp.MustCompile(`\d+\.(sst|vlog|mem)\b`)

// looksUnfinished reports whether damage at an offset looks like a write that a power cut
// interrupted: it is in the last transaction of the newest memtable log, or in the last
// record of the manifest. The store then opens in the state before that write, if its
// files match, and the member compares it with its log.
func (m *imageMember) looksUnfinished(target imageTarget, at int64) bool {
	switch name, f := target.name, m.folders()[target.folder][target.name]; {
	case filepath.Ext(name) == imageMem:
		logs, writes := m.db.names(imageMem), imageWrites(f.data)
		return name == logs[len(logs)-1] && len(writes) > 0 && at >= int64(writes[len(writes)-1].from)
	case name == imageManifest:
		records := imageChanges(f.data)
		return len(records) < 2 || at >= int64(records[len(records)-2].to)
	}
	return false
}

// serveImage starts a member on a data directory. It returns the error of the start, or
// compares the served data with a model.
func serveImage(t *testing.T, dir string, model *mvcctest.Model, what string) error {
	t.Helper()
	m, err := startPower(dir, nil, nil)
	if err != nil {
		return err
	}
	p := &powerTest{t: t, rng: rand.New(rand.NewPCG(1, 1)), model: model, what: what}
	p.ready(m, nil)
	if err := model.Check(m.Keyspace(), model.Mark()); err != nil {
		t.Errorf("%s: served: %v\n%s", what, err, m.log)
	}
	if err := m.stop(); err != nil {
		t.Errorf("%s: stop: %v\n%s", what, err, m.log)
	}
	return nil
}

// TestDamagedPack deletes, truncates or changes one pack below the durable revision,
// directly in badger, whose checksums stay valid. The start fails and names the pack.
func TestDamagedPack(t *testing.T) {
	img := imageMemberOf(t, true)
	for name, damage := range map[string]func(txn *badger.Txn, key, value []byte) error{
		"deleted":   func(txn *badger.Txn, key, value []byte) error { return txn.Delete(key) },
		"truncated": func(txn *badger.Txn, key, value []byte) error { return txn.Set(key, value[:len(value)/2]) },
		"emptied":   func(txn *badger.Txn, key, value []byte) error { return txn.Set(key, nil) },
		"altered": func(txn *badger.Txn, key, value []byte) error {
			value[len(value)-1]++
			return txn.Set(key, value)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := img.write(dir); err != nil {
				t.Fatal(err)
			}
			id := damagePack(t, powerStoreDir(dir), damage)
			err := serveImage(t, dir, img.model, name)
			var c *backend.CorruptError
			if !errors.As(err, &c) || c.Pack != id || !strings.Contains(err.Error(), "pack "+id.String()) {
				t.Errorf("pack %s %s: %v", id, name, err)
			}
		})
	}
	for name, damage := range map[string]func(path string) error{
		"file gone": os.Remove,
		"file cut":  func(path string) error { return os.Truncate(path, 30_000) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := img.write(dir); err != nil {
				t.Fatal(err)
			}
			for _, log := range img.db.names(imageVlog) { // not every log has a live pack
				if err := damage(filepath.Join(powerStoreDir(dir), log)); err != nil {
					t.Fatal(err)
				}
			}
			err := serveImage(t, dir, img.model, name)
			var c *backend.CorruptError
			if !errors.As(err, &c) || c.Pack.Main == 0 {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// damagePack changes a pack in the middle of the store in a separate transaction.
func damagePack(t *testing.T, dir string, damage func(txn *badger.Txn, key, value []byte) error) backend.PackID {
	t.Helper()
	db, err := badger.OpenManaged(badger.DefaultOptions(dir).WithLogger(nil).WithCompression(options.None).
		WithMemTableSize(1 << 20).WithValueLogFileSize(powerValueLogBytes).WithValueThreshold(1 << 10).WithDetectConflicts(false))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	var keys [][]byte
	read := db.NewTransactionAt(math.MaxUint64, false)
	defer read.Discard()
	it := read.NewIterator(badger.IteratorOptions{Prefix: []byte{'p'}})
	for it.Rewind(); it.Valid(); it.Next() {
		keys = append(keys, it.Item().KeyCopy(nil))
	}
	it.Close()
	key := keys[len(keys)/2]
	item, err := read.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	value, err := item.ValueCopy(nil)
	if err != nil {
		t.Fatal(err)
	}
	at := db.MaxVersion() + 1
	txn := db.NewTransactionAt(at, true)
	defer txn.Discard()
	if err := damage(txn, key, value); err != nil {
		t.Fatal(err)
	}
	if err := txn.CommitAt(at, nil); err != nil {
		t.Fatal(err)
	}
	return backend.PackID{Main: int64(binary.BigEndian.Uint64(key[1:])), Sub: int32(binary.BigEndian.Uint32(key[9:]))}
}

// TestEmptyLogs: the member starts after a crash that left empty logs in the store.
func TestEmptyLogs(t *testing.T) {
	for _, killed := range []bool{false, true} {
		img := imageMemberOf(t, killed)
		vlogs := img.db.names(imageVlog)
		for _, name := range []string{
			fmt.Sprintf("%06d%s", imageNumber(vlogs[len(vlogs)-1])+1, imageVlog),
			fmt.Sprintf("%05d%s", 99, imageMem),
		} {
			t.Run(fmt.Sprintf("killed=%v,%s", killed, filepath.Ext(name)[1:]), func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "data")
				if err := img.write(dir); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(powerStoreDir(dir), name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := serveImage(t, dir, img.model, name); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}
