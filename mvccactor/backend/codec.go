package backend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Keys. The first byte is the kind of the value; see FORMAT.md.
const (
	prefixCatalogue = 'c'
	prefixPack      = 'p'
	prefixState     = 's'
	prefixFiller    = 'z'

	packKeyLen = 1 + 8 + 4

	// maxNameLen bounds the name of a state entry, in bytes. Badger's limit for
	// keys is 65,000.
	maxNameLen = 4 << 10
)

// formatVersion is the version of the envelope and of the catalogue.
const formatVersion = 1

// headerLen is the length of the envelope in bytes. The content follows it.
const headerLen = 1 + 4 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var catalogueKey = []byte{prefixCatalogue}

func appendPackKey(dst []byte, id PackID) []byte {
	dst = append(dst, prefixPack)
	dst = binary.BigEndian.AppendUint64(dst, uint64(id.Main))
	return binary.BigEndian.AppendUint32(dst, uint32(id.Sub))
}

func packKey(id PackID) []byte { return appendPackKey(make([]byte, 0, packKeyLen), id) }

// parsePackKey returns the id in the key of a pack, and false for any other key.
func parsePackKey(key []byte) (PackID, bool) {
	if len(key) != packKeyLen || key[0] != prefixPack {
		return PackID{}, false
	}
	id := PackID{
		Main: int64(binary.BigEndian.Uint64(key[1:])),
		Sub:  int32(binary.BigEndian.Uint32(key[9:])),
	}
	return id, id.valid()
}

func (p PackID) valid() bool { return p.Main >= 1 && p.Sub >= 0 }

func stateKey(name string) []byte { return append([]byte{prefixState}, name...) }

// appendValue appends a value, the envelope and the content, to dst. It returns the
// result and the checksum.
func appendValue(dst, key []byte, parts ...[]byte) ([]byte, uint32) {
	start := len(dst)
	var n uint32
	for _, p := range parts {
		n += uint32(len(p))
	}
	dst = append(dst, formatVersion)
	dst = binary.BigEndian.AppendUint32(dst, n)
	dst = binary.BigEndian.AppendUint32(dst, 0)
	for _, p := range parts {
		dst = append(dst, p...)
	}
	crc := checksum(key, dst[start:])
	binary.BigEndian.PutUint32(dst[start+5:], crc)
	return dst, crc
}

// checksum returns the checksum of the key and the whole value, without the checksum in
// it. The key is covered so that a value under the wrong key is detected.
func checksum(key, value []byte) uint32 {
	crc := crc32.Update(0, castagnoli, key)
	crc = crc32.Update(crc, castagnoli, value[:5])
	return crc32.Update(crc, castagnoli, value[headerLen:])
}

// errUnreadable means that badger returned an empty value. It does so if it cannot read
// a value log; it only logs the reason.
var errUnreadable = errors.New("value log is damaged or truncated")

// openValue checks the envelope of a value. It returns the content, which shares memory
// with value, and the checksum.
func openValue(key, value []byte) (content []byte, crc uint32, err error) {
	if len(value) == 0 {
		return nil, 0, errUnreadable
	}
	if len(value) < headerLen {
		return nil, 0, fmt.Errorf("value of %d bytes is shorter than its header", len(value))
	}
	crc = binary.BigEndian.Uint32(value[5:])
	if sum := checksum(key, value); sum != crc {
		return nil, 0, fmt.Errorf("checksum is %08x, its header says %08x", sum, crc)
	}
	if value[0] != formatVersion {
		return nil, 0, fmt.Errorf("%w: value version %d", ErrNewer, value[0])
	}
	if n := binary.BigEndian.Uint32(value[1:]); int64(n) != int64(len(value)-headerLen) {
		return nil, 0, fmt.Errorf("content has %d bytes, its header says %d", len(value)-headerLen, n)
	}
	return value[headerLen:], crc, nil
}
