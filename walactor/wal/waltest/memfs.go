// Package waltest implements wal.FS in memory, for crash tests: a simulated power cut
// loses what was not synced.
package waltest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/troupe-db/troupe/walactor/wal"
)

// SectorBytes is the unit that the disk writes atomically.
const SectorBytes = 512

// ErrPower is returned by every call after a power cut, until Crash.
var ErrPower = errors.New("waltest: power is off")

// errStale is returned by files and locks that were opened before a Crash or Kill.
var errStale = errors.New("waltest: opened before the crash")

// Op names a method of wal.FS or wal.File.
type Op string

// The operations that a Hook is called for.
const (
	OpMkdir    Op = "mkdir"
	OpList     Op = "list"
	OpCreate   Op = "create"
	OpOpen     Op = "open"
	OpRename   Op = "rename"
	OpRemove   Op = "remove"
	OpSyncDir  Op = "syncdir"
	OpLock     Op = "lock"
	OpRead     Op = "read"
	OpWrite    Op = "write"
	OpAllocate Op = "allocate"
	OpDatasync Op = "datasync"
)

// Call describes a call that is about to be made.
type Call struct {
	N    int // number of the call since New, from 1
	Op   Op
	Path string
	Off  int64 // of reads and writes
	Len  int   // of reads and writes; for OpAllocate, the size
}

// Hook is called before every call, without locks held, so it may block to simulate a
// slow or hanging disk. If it returns an error, the call fails with it:
//
//   - a write writes nothing, or only the first bytes if the error is a *Partial;
//   - a datasync makes nothing durable, and the file counts as clean, as on Linux:
//     later syncs succeed, and the data is still not on disk;
//   - any other call has no effect.
type Hook func(Call) error

// Partial is the error of a write of which a part was written.
type Partial struct {
	Bytes int // written, from the start
	Err   error
}

// Error implements error.
func (p *Partial) Error() string { return fmt.Sprintf("%v after %d bytes", p.Err, p.Bytes) }

// Unwrap returns Err.
func (p *Partial) Unwrap() error { return p.Err }

// MemFS is an in-memory wal.FS. It has two images of each file and of each directory's
// names: the volatile one, which calls read and change, and the durable one, which
// survives a Crash. Its methods may be called from several goroutines.
type MemFS struct {
	mu      sync.Mutex
	root    *node
	epoch   int // counts Crash and Kill; files and locks of earlier epochs are stale
	calls   int // made since New
	hook    Hook
	cutAt   int        // number of the call at which the power fails; 0: never
	cutRand *rand.Rand // chooses how a write is torn; set with cutAt
	off     bool       // the power is off, from the call cutAt until Crash or Kill
}

// node is a file or a directory, with both images.
type node struct {
	dir bool

	// Of a directory:
	locked  bool
	names   map[string]*node // volatile
	durable map[string]*node
	pending []nameOp // changes of names since the last SyncDir, in order

	// Of a file:
	data  []byte       // volatile
	disk  []byte       // durable
	dirty map[int]bool // sectors of data that are not durable
}

// nameOp is a change of a directory's names.
type nameOp struct {
	op       Op
	name, to string
	n        *node
}

func newDir() *node {
	return &node{dir: true, names: map[string]*node{}, durable: map[string]*node{}}
}

var _ wal.FS = (*MemFS)(nil)

// New returns an empty disk with a durable root directory "/".
func New() *MemFS {
	return &MemFS{root: newDir()}
}

// SetHook installs a hook, or removes it with nil.
func (m *MemFS) SetHook(h Hook) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = h
}

// FailNth returns a hook that fails the nth call of an operation, counted from 1, and no
// other.
func FailNth(op Op, n int, err error) Hook {
	var mu sync.Mutex
	return func(c Call) error {
		mu.Lock()
		defer mu.Unlock()
		if c.Op != op {
			return nil
		}
		n--
		if n == 0 {
			return err
		}
		return nil
	}
}

// Calls returns the number of calls made so far.
func (m *MemFS) Calls() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

// CutPower makes the power fail during the given call, counted as Call.N. That call has
// no effect, unless it is a write, which is torn at random. It and all later calls fail
// with ErrPower until Crash or Kill.
func (m *MemFS) CutPower(call int, seed uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cutAt, m.cutRand = call, rand.New(rand.NewPCG(seed, 1))
}

// Crash simulates a power cut and the boot after it. The seed decides which of the
// sectors and names that were not synced survive. Open files and locks become stale; the
// hook stays installed.
func (m *MemFS) Crash(seed uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rng := rand.New(rand.NewPCG(seed, 2))
	survive := []float64{0, 0.1, 0.5, 0.9, 1}
	names, sectors := survive[rng.IntN(5)], survive[rng.IntN(5)]
	nodes := m.nodes()
	m.reboot()
	for _, n := range nodes {
		n.crash(rng, names, sectors)
	}
}

// crash makes each change of a name, and each dirty sector, durable with the given
// probabilities, and loses the rest.
func (n *node) crash(rng *rand.Rand, names, sectors float64) {
	if n.dir {
		for _, op := range n.pending {
			if rng.Float64() < names {
				applyName(n.durable, op)
			}
		}
		n.names, n.pending = maps.Clone(n.durable), nil
		return
	}
	n.writeBack(rng, sectors)
	if len(n.disk) != len(n.data) && rng.Float64() < 0.5 {
		n.disk = resize(n.disk, len(n.data))
	}
	n.data, n.dirty = slices.Clone(n.disk), nil
}

// Kill simulates the end of the process alone: open files and locks become stale, and
// what was written stays visible, durable or not.
func (m *MemFS) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reboot()
}

// reboot makes open files and locks stale and turns the power on.
func (m *MemFS) reboot() {
	m.epoch++
	m.cutAt, m.off = 0, false
	for _, n := range m.nodes() {
		n.locked = false
	}
}

// WriteBack makes some dirty sectors durable, as the kernel's write-back does.
func (m *MemFS) WriteBack(seed uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rng := rand.New(rand.NewPCG(seed, 3))
	for _, n := range m.nodes() {
		n.writeBack(rng, 0.3)
	}
}

// Clone returns a copy of both images, without the hook, open files and locks.
func (m *MemFS) Clone() *MemFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	copies := map[*node]*node{}
	var copyOf func(*node) *node
	copyAll := func(names map[string]*node) map[string]*node {
		c := make(map[string]*node, len(names))
		for name, n := range names {
			c[name] = copyOf(n)
		}
		return c
	}
	copyOf = func(n *node) *node {
		if c := copies[n]; c != nil {
			return c
		}
		c := &node{dir: n.dir, data: slices.Clone(n.data), disk: slices.Clone(n.disk), dirty: maps.Clone(n.dirty)}
		copies[n] = c
		c.names, c.durable = copyAll(n.names), copyAll(n.durable)
		for _, op := range n.pending {
			op.n = copyOf(op.n)
			c.pending = append(c.pending, op)
		}
		return c
	}
	return &MemFS{root: copyOf(m.root)}
}

// ReadFile returns the volatile content of a file.
func (m *MemFS) ReadFile(path string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.file(path)
	if err != nil {
		return nil, err
	}
	return slices.Clone(n.data), nil
}

// Damage replaces the content of a file in both images by what change returns. change
// may modify its argument or return another slice. It is no call that a hook sees.
func (m *MemFS) Damage(path string, change func([]byte) []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.file(path)
	if err != nil {
		return err
	}
	n.data = change(slices.Clone(n.data))
	n.disk, n.dirty = slices.Clone(n.data), nil
	return nil
}

// FlipBit inverts a bit of a file.
func (m *MemFS) FlipBit(path string, off int64, bit uint) error {
	return m.Damage(path, func(b []byte) []byte {
		b[off] ^= 1 << bit
		return b
	})
}

// ZeroSector fills the sector around off with zeros.
func (m *MemFS) ZeroSector(path string, off int64) error {
	return m.Damage(path, func(b []byte) []byte {
		at := off &^ (SectorBytes - 1)
		clear(b[at:min(at+SectorBytes, int64(len(b)))])
		return b
	})
}

// file returns the file at a path in the volatile image.
func (m *MemFS) file(path string) (*node, error) {
	n := m.lookup(path)
	if n == nil || n.dir {
		return nil, pathError("open", path, fs.ErrNotExist)
	}
	return n, nil
}

// lookup returns the node at a path in the volatile image, or nil.
func (m *MemFS) lookup(path string) *node {
	n := m.root
	for _, name := range strings.Split(filepath.Clean(path), "/") {
		if n == nil {
			return nil
		}
		if name != "" {
			n = n.names[name]
		}
	}
	return n
}

// parent returns the directory of a path, which must exist.
func (m *MemFS) parent(op Op, path string) (*node, error) {
	n := m.lookup(filepath.Dir(path))
	if n == nil || !n.dir {
		return nil, pathError(string(op), path, fs.ErrNotExist)
	}
	return n, nil
}

// nodes returns every node of both images once, in a fixed order.
func (m *MemFS) nodes() []*node {
	seen := map[*node]bool{}
	var all []*node
	var walk func(*node)
	walk = func(n *node) {
		if seen[n] {
			return
		}
		seen[n] = true
		all = append(all, n)
		for _, names := range []map[string]*node{n.durable, n.names} {
			for _, name := range slices.Sorted(maps.Keys(names)) {
				walk(names[name])
			}
		}
		for _, op := range n.pending {
			walk(op.n)
		}
	}
	walk(m.root)
	return all
}

// writeBack makes dirty sectors durable with probability p each.
func (n *node) writeBack(rng *rand.Rand, p float64) {
	for _, s := range slices.Sorted(maps.Keys(n.dirty)) {
		if rng.Float64() < p {
			n.persist(s)
		}
	}
}

// persist makes one sector durable.
func (n *node) persist(sector int) {
	from, to := sector*SectorBytes, min((sector+1)*SectorBytes, len(n.data))
	if len(n.disk) < to {
		n.disk = resize(n.disk, to)
	}
	copy(n.disk[from:to], n.data[from:to])
	delete(n.dirty, sector)
}

// resize returns b, cut or extended with zeros to size bytes.
func resize(b []byte, size int) []byte {
	if size <= len(b) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-len(b))...)
}

// write writes to the volatile image.
func (n *node) write(b []byte, off int64) {
	if len(b) == 0 {
		return
	}
	end := int(off) + len(b)
	if end > len(n.data) {
		n.data = resize(n.data, end)
	}
	copy(n.data[off:], b)
	if n.dirty == nil {
		n.dirty = map[int]bool{}
	}
	for s := int(off) / SectorBytes; s*SectorBytes < end; s++ {
		n.dirty[s] = true
	}
}

// applyName applies a change of a name to an image. It does nothing if the change
// depends on an earlier one that is not in the image.
func applyName(names map[string]*node, op nameOp) {
	switch op.op {
	case OpMkdir, OpCreate:
		names[op.name] = op.n
	case OpRemove:
		if names[op.name] == op.n {
			delete(names, op.name)
		}
	case OpRename:
		if names[op.name] == op.n {
			delete(names, op.name)
			names[op.to] = op.n
		}
	}
}

// change applies a change of a name to the volatile image, and keeps it for SyncDir.
func (n *node) change(op nameOp) {
	applyName(n.names, op)
	n.pending = append(n.pending, op)
}

func pathError(op, path string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }

// begin numbers a call, cuts the power if that is due, and calls the hook. If a write
// fails, torn is the number of bytes to write nevertheless.
func (m *MemFS) begin(c Call) (torn int, err error) {
	m.mu.Lock()
	m.calls++
	c.N = m.calls
	if m.off {
		m.mu.Unlock()
		return 0, pathError(string(c.Op), c.Path, ErrPower)
	}
	if m.cutAt != 0 && c.N >= m.cutAt {
		m.off = true
		if c.Op == OpWrite {
			torn = m.cutRand.IntN(c.Len/SectorBytes+2) * SectorBytes
		}
		m.mu.Unlock()
		return min(torn, c.Len), pathError(string(c.Op), c.Path, ErrPower)
	}
	hook := m.hook
	m.mu.Unlock()
	if hook == nil {
		return 0, nil
	}
	err = hook(c)
	if err == nil {
		return 0, nil
	}
	var p *Partial
	if errors.As(err, &p) {
		torn = p.Bytes
	}
	return min(torn, c.Len), pathError(string(c.Op), c.Path, err)
}

// Mkdir implements wal.FS.
func (m *MemFS) Mkdir(dir string) error {
	dir = filepath.Clean(dir)
	if _, err := m.begin(Call{Op: OpMkdir, Path: dir}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	parent, err := m.parent(OpMkdir, dir)
	if err != nil {
		return err
	}
	if n := m.lookup(dir); n != nil {
		if n.dir {
			return nil
		}
		return pathError("mkdir", dir, fs.ErrExist)
	}
	parent.change(nameOp{op: OpMkdir, name: filepath.Base(dir), n: newDir()})
	return nil
}

// List implements wal.FS.
func (m *MemFS) List(dir string) ([]string, error) {
	dir = filepath.Clean(dir)
	if _, err := m.begin(Call{Op: OpList, Path: dir}); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.lookup(dir)
	if n == nil || !n.dir {
		return nil, pathError("list", dir, fs.ErrNotExist)
	}
	return slices.Sorted(maps.Keys(n.names)), nil
}

// Create implements wal.FS.
func (m *MemFS) Create(path string) (wal.File, error) {
	path = filepath.Clean(path)
	if _, err := m.begin(Call{Op: OpCreate, Path: path}); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	parent, err := m.parent(OpCreate, path)
	if err != nil {
		return nil, err
	}
	if m.lookup(path) != nil {
		return nil, pathError("create", path, fs.ErrExist)
	}
	n := &node{}
	parent.change(nameOp{op: OpCreate, name: filepath.Base(path), n: n})
	return &memFile{m: m, n: n, path: path, write: true, epoch: m.epoch}, nil
}

// Open implements wal.FS.
func (m *MemFS) Open(path string, write bool) (wal.File, error) {
	path = filepath.Clean(path)
	if _, err := m.begin(Call{Op: OpOpen, Path: path}); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.file(path)
	if err != nil {
		return nil, err
	}
	return &memFile{m: m, n: n, path: path, write: write, epoch: m.epoch}, nil
}

// Rename implements wal.FS, within one directory.
func (m *MemFS) Rename(oldPath, newPath string) error {
	oldPath, newPath = filepath.Clean(oldPath), filepath.Clean(newPath)
	if _, err := m.begin(Call{Op: OpRename, Path: oldPath}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if filepath.Dir(oldPath) != filepath.Dir(newPath) {
		return pathError("rename", newPath, errors.ErrUnsupported)
	}
	n := m.lookup(oldPath)
	if n == nil {
		return pathError("rename", oldPath, fs.ErrNotExist)
	}
	if at := m.lookup(newPath); at != nil && (at.dir != n.dir || len(at.names) > 0) {
		return pathError("rename", newPath, fs.ErrExist)
	}
	parent, err := m.parent(OpRename, oldPath)
	if err != nil {
		return err
	}
	parent.change(nameOp{op: OpRename, name: filepath.Base(oldPath), to: filepath.Base(newPath), n: n})
	return nil
}

// Remove implements wal.FS.
func (m *MemFS) Remove(path string) error {
	path = filepath.Clean(path)
	if _, err := m.begin(Call{Op: OpRemove, Path: path}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.lookup(path)
	switch {
	case n == nil:
		return pathError("remove", path, fs.ErrNotExist)
	case len(n.names) > 0:
		return pathError("remove", path, syscall.ENOTEMPTY)
	}
	parent, err := m.parent(OpRemove, path)
	if err != nil {
		return err
	}
	parent.change(nameOp{op: OpRemove, name: filepath.Base(path), n: n})
	return nil
}

// SyncDir implements wal.FS.
func (m *MemFS) SyncDir(dir string) error {
	dir = filepath.Clean(dir)
	if _, err := m.begin(Call{Op: OpSyncDir, Path: dir}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.lookup(dir)
	if n == nil || !n.dir {
		return pathError("syncdir", dir, fs.ErrNotExist)
	}
	for _, op := range n.pending {
		applyName(n.durable, op)
	}
	n.pending = nil
	return nil
}

// Lock implements wal.FS.
func (m *MemFS) Lock(dir string) (io.Closer, error) {
	dir = filepath.Clean(dir)
	if _, err := m.begin(Call{Op: OpLock, Path: dir}); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.lookup(dir)
	if n == nil || !n.dir {
		return nil, pathError("lock", dir, fs.ErrNotExist)
	}
	if n.locked {
		return nil, fmt.Errorf("%w: %s", wal.ErrLocked, dir)
	}
	n.locked = true
	return &memLock{m: m, n: n, epoch: m.epoch}, nil
}

type memLock struct {
	m     *MemFS
	n     *node
	epoch int
}

func (l *memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.epoch != l.m.epoch {
		return errStale
	}
	l.n.locked = false
	return nil
}

type memFile struct {
	m      *MemFS
	n      *node
	path   string
	write  bool
	epoch  int
	closed bool
}

// usable returns the error of an operation on a file that is stale, closed or open for
// reading only. The caller holds m.mu.
func (f *memFile) usable(op Op) error {
	switch {
	case f.epoch != f.m.epoch:
		return pathError(string(op), f.path, errStale)
	case f.closed:
		return pathError(string(op), f.path, fs.ErrClosed)
	case !f.write && op != OpRead:
		return pathError(string(op), f.path, fs.ErrPermission)
	}
	return nil
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	if _, err := f.m.begin(Call{Op: OpRead, Path: f.path, Off: off, Len: len(b)}); err != nil {
		return 0, err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.usable(OpRead); err != nil {
		return 0, err
	}
	if off > int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	torn, failed := f.m.begin(Call{Op: OpWrite, Path: f.path, Off: off, Len: len(b)})
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.usable(OpWrite); err != nil {
		return 0, err
	}
	if failed != nil {
		// A write is torn between sectors of the disk. off may be within one.
		if torn > 0 && torn < len(b) {
			torn = max(0, torn-int(off%SectorBytes))
		}
		f.n.write(b[:torn], off)
		return torn, failed
	}
	f.n.write(b, off)
	return len(b), nil
}

func (f *memFile) Allocate(size int64) error {
	if _, err := f.m.begin(Call{Op: OpAllocate, Path: f.path, Len: int(size)}); err != nil {
		return err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.usable(OpAllocate); err != nil {
		return err
	}
	if int(size) > len(f.n.data) {
		f.n.data = resize(f.n.data, int(size))
	}
	return nil
}

func (f *memFile) Datasync() error {
	_, failed := f.m.begin(Call{Op: OpDatasync, Path: f.path})
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.usable(OpDatasync); err != nil {
		return err
	}
	if failed != nil {
		if !f.m.off {
			clear(f.n.dirty)
		}
		return failed
	}
	f.n.disk = resize(f.n.disk, len(f.n.data))
	for s := range f.n.dirty {
		f.n.persist(s)
	}
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.epoch != f.m.epoch {
		return 0, pathError("stat", f.path, errStale)
	}
	return int64(len(f.n.data)), nil
}

func (f *memFile) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.epoch != f.m.epoch {
		return errStale
	}
	if f.closed {
		return pathError("close", f.path, fs.ErrClosed)
	}
	f.closed = true
	return nil
}
