package mvcc

import (
	"cmp"
	"encoding/binary"
	"fmt"

	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// Revision identifies a record: Main counts the transactions that changed the keyspace,
// and Sub the changes within one transaction, from 0.
type Revision struct {
	Main int64
	Sub  int32
}

// firstRevision is the revision of the keyspace before its first change, as in etcd. No
// record has it.
const firstRevision = 1

// Less reports whether r is older than o.
func (r Revision) Less(o Revision) bool {
	return r.Main < o.Main || r.Main == o.Main && r.Sub < o.Sub
}

func (r Revision) compare(o Revision) int {
	return cmp.Or(cmp.Compare(r.Main, o.Main), cmp.Compare(r.Sub, o.Sub))
}

func (r Revision) String() string { return fmt.Sprintf("%d.%d", r.Main, r.Sub) }

// PackID returns the name in messages of the pack that was opened with the record r. The
// inverse is RevisionOf.
func (r Revision) PackID() *mvccmsg.PackID { return &mvccmsg.PackID{Main: r.Main, Sub: r.Sub} }

// RevisionOf returns the revision that names a pack.
func RevisionOf(id *mvccmsg.PackID) Revision { return Revision{Main: id.Main, Sub: id.Sub} }

// appendHashKey appends the key under which etcd stores a record of this revision: 8 bytes
// of main, an underscore, 8 bytes of sub, and a t for a tombstone. HashKV covers it.
func (r Revision) appendHashKey(dst []byte, tombstone bool) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Main))
	dst = append(dst, '_')
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Sub))
	if tombstone {
		dst = append(dst, 't')
	}
	return dst
}
