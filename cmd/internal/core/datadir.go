package core

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/walactor/wal"
)

// Errors of opening a data directory.
var (
	// ErrEtcdData: the directory belongs to a real etcd member.
	ErrEtcdData = errors.New("core: the data directory belongs to an etcd member, whose files have another format; " +
		"to migrate, start with a new data directory while etcd runs, and copy the keys with 'etcdctl make-mirror'")
	// ErrStoreBehind: the store lacks entries that are not in the log any more.
	ErrStoreBehind = errors.New("core: the store ends before the log begins")
	// ErrLogBehind: the log lacks entries that the store has, or is another one.
	ErrLogBehind = errors.New("core: the log ends before what was applied from it")
	// ErrOtherMember: store and log do not belong to the same member, or not to this one.
	ErrOtherMember = errors.New("core: the data directory belongs to another member")
)

// DataDir is where a member has its data.
type DataDir struct {
	Path string
	// WAL, if set, is the folder of the write-ahead log instead of one in Path.
	WAL string
	// FS is the file system of all but the content of stores, which Storage.OpenStore opens;
	// nil is that of the operating system.
	FS wal.FS
}

// Identity identifies the member that a data directory belongs to. It is stored in a file
// of its own, which can be read without opening, and so changing, anything else.
type Identity struct {
	ClusterID uint64   `json:"cluster_id"`
	MemberID  uint64   `json:"member_id"`
	Name      string   `json:"name"`
	PeerURLs  []string `json:"peer_urls"`
	// DataID is drawn when the directory is created, and never changes. If the other
	// members know this one by another id, it has lost its data. 0 in directories of
	// versions without it, until their next start.
	DataID uint64 `json:"data_id,omitempty"`
	// Joined is set if the first start of the member joined a cluster that existed. Such a
	// member never creates one, whatever its flags say at a later start.
	Joined bool `json:"joined,omitempty"`
}

// Layout has the paths in a data directory.
type Layout struct {
	Identity string // the file
	Log      string // the folder of the write-ahead log
	Store    string // the folder of the current store
	// Current is why the file that names the current store cannot be used; Store is then
	// that of a member which never installed a snapshot.
	Current error
	// Stray is a file that etcd created when it was started on this directory and
	// failed; empty if there is none. It is never read.
	Stray string
}

func (d DataDir) fs() wal.FS {
	if d.FS == nil {
		return wal.OSFS{}
	}
	return d.FS
}

func (d DataDir) member() string { return filepath.Join(d.Path, "member") }

func (d DataDir) identityPath() string { return filepath.Join(d.member(), "identity.json") }

// LogDir returns the folder of the write-ahead log.
func (d DataDir) LogDir() string {
	if d.WAL != "" {
		return d.WAL
	}
	return filepath.Join(d.member(), "wal")
}

// StoreDir returns the folder of the current store, which changes when a snapshot is
// installed. If the file that names it is damaged, which a boot reports or repairs, it is the
// folder of a member that never installed one.
func (d DataDir) StoreDir() string {
	dir, err := d.currentStore()
	if err != nil {
		return d.firstStore()
	}
	return dir
}

// stores returns the folders of the stores.
func (d DataDir) stores() *snapshot.Stores { return snapshot.NewStores(d.fs(), d.member()) }

func (d DataDir) currentStore() (string, error) { return d.stores().Current() }

func (d DataDir) firstStore() string { return filepath.Join(d.member(), "db") }

// BallastPath returns the file that is deleted when the disk is full.
func (d DataDir) BallastPath() string { return filepath.Join(d.member(), "ballast") }

// Exists reports whether the directory has a member's data.
func (d DataDir) Exists() bool { return exists(d.fs(), d.identityPath()) }

func exists(fsys wal.FS, path string) bool {
	f, err := fsys.Open(path, false)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// Layout returns the layout of the directory. Error: ErrEtcdData with the file that shows
// that it belongs to an etcd member.
func (d DataDir) Layout() (Layout, error) {
	l := Layout{Identity: d.identityPath(), Log: d.LogDir(), Store: d.StoreDir()}
	_, l.Current = d.currentStore()
	if file, ok := etcdLog(d.fs(), l.Log); ok {
		return l, fmt.Errorf("%w (%s)", ErrEtcdData, file)
	}
	stray := filepath.Join(d.member(), "snap", "db")
	if !exists(d.fs(), stray) {
		return l, nil
	}
	ours, err := wal.Exists(d.fs(), l.Log)
	if err != nil {
		return l, err
	}
	if !ours && !d.Exists() {
		return l, fmt.Errorf("%w (%s)", ErrEtcdData, stray)
	}
	l.Stray = stray
	return l, nil
}

// etcdLog returns a file of an etcd member's log in dir, if there is one. Such files have
// the same names as ours, but begin with a frame whose record has type 4, a checksum.
func etcdLog(fsys wal.FS, dir string) (file string, ok bool) {
	names, err := fsys.List(dir)
	if err != nil {
		return "", false
	}
	i := slices.IndexFunc(names, func(name string) bool { return strings.HasSuffix(name, ".wal") })
	if i < 0 {
		return "", false
	}
	file = filepath.Join(dir, names[i])
	f, err := fsys.Open(file, false)
	if err != nil {
		return "", false
	}
	defer f.Close()
	var head [10]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return "", false
	}
	return file, head[8] == 0x08 && head[9] == 0x04
}

// OpenDataDir creates the directory if it does not exist. It returns the identity of the
// member whose data is in it, and if there is none, the given one with a new data id. Before
// it changes anything, it refuses the data of etcd, and of another member: one that has
// neither the name nor a peer URL of the given one. stray is Layout.Stray.
func OpenDataDir(d DataDir, given Identity, random func() uint64) (id Identity, stray string, err error) {
	layout, err := d.Layout()
	if err != nil {
		return id, "", err
	}
	for _, dir := range []string{d.member(), filepath.Dir(d.LogDir())} {
		if err := mkdirAll(d.fs(), dir); err != nil {
			return id, "", fmt.Errorf("core: data directory: %w", err)
		}
	}
	id = given
	old, err := ReadIdentity(d.fs(), layout.Identity)
	switch {
	case err == nil:
		known := func(url string) bool { return slices.Contains(old.PeerURLs, url) }
		if old.Name != given.Name && !slices.ContainsFunc(given.PeerURLs, known) {
			return id, "", fmt.Errorf("%w: %s is of member %q at %v, this is member %q at %v",
				ErrOtherMember, d.Path, old.Name, old.PeerURLs, given.Name, given.PeerURLs)
		}
		// The peer URLs stay those of the first start: the ids are derived from them.
		id = old
		id.Name = given.Name
	case !errors.Is(err, fs.ErrNotExist):
		return id, "", err
	}
	for id.DataID == 0 {
		id.DataID = random()
	}
	return id, layout.Stray, nil
}

// mkdirAll creates a directory, and the missing ones above it, durably.
func mkdirAll(fsys wal.FS, dir string) error {
	if _, err := fsys.List(dir); err == nil {
		return nil
	}
	err := fsys.Mkdir(dir)
	above := filepath.Dir(dir)
	if errors.Is(err, fs.ErrNotExist) && above != dir {
		if err := mkdirAll(fsys, above); err != nil {
			return err
		}
		err = fsys.Mkdir(dir)
	}
	if err != nil {
		return err
	}
	return fsys.SyncDir(above)
}

// identityBytesMax bounds the identity file: a name and some URLs.
const identityBytesMax = 1 << 20

// ReadIdentity reads the file of Layout.Identity. Errors: fs.ErrNotExist until the first
// start has succeeded; ErrOtherMember if the file has no ids.
func ReadIdentity(fsys wal.FS, path string) (Identity, error) {
	text, err := wal.ReadFile(fsys, path, identityBytesMax)
	if err != nil {
		return Identity{}, fmt.Errorf("core: identity: %w", err)
	}
	id, err := parseIdentity(text)
	if err != nil {
		return Identity{}, fmt.Errorf("core: no identity in %s: %w", path, err)
	}
	return id, nil
}

func parseIdentity(text []byte) (id Identity, err error) {
	if err := json.Unmarshal(text, &id); err != nil || id.MemberID == 0 || id.ClusterID == 0 {
		return Identity{}, errors.Join(err, ErrOtherMember)
	}
	return id, nil
}

// record writes the identity file, if it is missing or differs. It is called when the data
// is open and so known to be this member's.
func (d DataDir) record(id Identity) error {
	old, err := ReadIdentity(d.fs(), d.identityPath())
	switch {
	case err == nil && old.Name == id.Name && old.DataID == id.DataID:
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return writeIdentity(d.fs(), d.identityPath(), id)
}

func writeIdentity(fsys wal.FS, path string, id Identity) error {
	text, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("core: identity: %w", err)
	}
	if err := wal.ReplaceFile(fsys, path, append(text, '\n')); err != nil {
		return fmt.Errorf("core: identity: %w", err)
	}
	return nil
}
