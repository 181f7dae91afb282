package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/troupe-db/troupe/walactor/wal"
)

// Identity identifies the member that a data directory belongs to. It is stored in a file
// of its own, which can be read without opening, and so changing, anything else.
type Identity struct {
	ClusterID uint64   `json:"cluster_id"`
	MemberID  uint64   `json:"member_id"`
	Name      string   `json:"name"`
	PeerURLs  []string `json:"peer_urls"`
}

// Layout has the paths in a data directory.
type Layout struct {
	Identity string // the file
	Log      string // the folder of the write-ahead log
	Store    string // the folder of the store
	// Stray is a file that etcd created when it was started on this directory and
	// failed; empty if there is none. It is never read.
	Stray string
}

// LayoutOf returns the layout of a data directory. walDir is the folder of the log if that
// is not in the data directory, and empty otherwise. Error: ErrEtcdData with the file that
// shows that the directory belongs to an etcd member.
func LayoutOf(dataDir, walDir string) (Layout, error) {
	cfg := Config{DataDir: dataDir, WALDir: walDir}
	l := Layout{Identity: identityPath(dataDir), Log: cfg.walDir(), Store: cfg.dbDir()}
	if file, ok := etcdLog(l.Log); ok {
		return l, fmt.Errorf("%w (%s)", ErrEtcdData, file)
	}
	stray, ok := etcdStore(dataDir)
	if !ok {
		return l, nil
	}
	ours, err := wal.Exists(wal.OSFS{}, l.Log)
	if err != nil {
		return l, err
	}
	if !ours && !Exists(dataDir) {
		return l, fmt.Errorf("%w (%s)", ErrEtcdData, stray)
	}
	l.Stray = stray
	return l, nil
}

// etcdStore returns the file of an etcd member's store, if there is one.
func etcdStore(dataDir string) (file string, ok bool) {
	file = filepath.Join(dataDir, "member", "snap", "db")
	_, err := os.Stat(file)
	return file, err == nil
}

func identityPath(dataDir string) string { return filepath.Join(dataDir, "member", "identity.json") }

// Exists reports whether a directory has a member's data.
func Exists(dataDir string) bool {
	_, err := os.Stat(identityPath(dataDir))
	return err == nil
}

// identify sets the ids of this member to those of the data directory; in a new directory,
// those of the configuration remain. It refuses the data of another member: one that has
// neither the name nor a peer URL of this one. It changes nothing on disk.
func identify(cfg *Config) error {
	id, err := readIdentity(cfg.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	known := func(url string) bool { return slices.Contains(id.PeerURLs, url) }
	if id.Name != cfg.Name && !slices.ContainsFunc(cfg.PeerURLs, known) {
		return fmt.Errorf("%w: %s is of member %q at %v, this is member %q at %v",
			ErrOtherMember, cfg.DataDir, id.Name, id.PeerURLs, cfg.Name, cfg.PeerURLs)
	}
	cfg.ClusterID, cfg.MemberID = id.ClusterID, id.MemberID
	return nil
}

func readIdentity(dataDir string) (Identity, error) { return ReadIdentity(identityPath(dataDir)) }

// ReadIdentity reads the file of Layout.Identity. Errors: fs.ErrNotExist until the first
// start has succeeded; ErrOtherMember if the file has no ids.
func ReadIdentity(path string) (Identity, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Identity{}, fmt.Errorf("node: identity: %w", err)
	}
	id, err := parseIdentity(text)
	if err != nil {
		return Identity{}, fmt.Errorf("node: no identity in %s: %w", path, err)
	}
	return id, nil
}

func parseIdentity(text []byte) (id Identity, err error) {
	if err := json.Unmarshal(text, &id); err != nil || id.MemberID == 0 || id.ClusterID == 0 {
		return Identity{}, errors.Join(err, ErrOtherMember)
	}
	return id, nil
}

// recordIdentity writes the identity file, if it is missing or has another name. It is
// called when the data is open and so known to be this member's. The peer URLs stay those
// of the first start, because the ids are derived from them.
func recordIdentity(cfg *Config) error {
	now := Identity{cfg.ClusterID, cfg.MemberID, cfg.Name, cfg.PeerURLs}
	old, err := readIdentity(cfg.DataDir)
	switch {
	case err == nil && old.Name == now.Name:
		return nil
	case err == nil:
		now.PeerURLs = old.PeerURLs
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return writeIdentity(identityPath(cfg.DataDir), now)
}

// writeIdentity replaces the file atomically: a crash leaves the old or the new one.
func writeIdentity(path string, id Identity) error {
	text, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("node: identity: %w", err)
	}
	temporary := path + ".tmp"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("node: identity: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("node: identity: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("node: identity: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("node: identity: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("node: identity: %w", err)
	}
	return nil
}
