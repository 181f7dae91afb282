package backend

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/dgraph-io/badger/v4/fb"
)

// checkTableFile checks a table before badger opens it. Badger's own check decodes lengths
// that it has not verified, and panics in its own goroutine if they are wrong.
//
// A table consists of blocks, index, length of the index (4), checksum of the index, length
// of the checksum (4). A block ends with its checksum and the length of that (4). A checksum
// is a protobuf message with an algorithm and a sum.
func checkTableFile(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return checkTable(data)
}

func checkTable(data []byte) error {
	err := guard(func() error { return checkBlocks(data) })
	if isPanic(err) {
		// The index has the right checksum, but is malformed: its decoder trusts the
		// offsets in it.
		return fmt.Errorf("index is malformed: %w", err)
	}
	return err
}

func checkBlocks(data []byte) error {
	rest, sum, ok := cutChecksum(data)
	if !ok {
		return fmt.Errorf("table of %d bytes has no valid footer", len(data))
	}
	rest, index, ok := cutTail(rest)
	if !ok || len(index) == 0 || uint64(crc32.Checksum(index, castagnoli)) != sum {
		return fmt.Errorf("index has a bad checksum")
	}
	table := fb.GetRootAsTableIndex(index, 0)
	if table.OffsetsLength() == 0 {
		return fmt.Errorf("index is empty")
	}
	for i := range table.OffsetsLength() {
		var at fb.BlockOffset
		table.Offsets(&at, i)
		from, n := uint64(at.Offset()), uint64(at.Len())
		if from+n > uint64(len(rest)) {
			return fmt.Errorf("block %d extends past the table", i)
		}
		block, sum, ok := cutChecksum(rest[from : from+n])
		if !ok || uint64(crc32.Checksum(block, castagnoli)) != sum {
			return fmt.Errorf("block %d at offset %d has a bad checksum", i, from)
		}
	}
	return nil
}

// cutTail splits b into the rest and a piece at the end that is followed by its length.
func cutTail(b []byte) (rest, piece []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	end := len(b) - 4
	n := uint64(binary.BigEndian.Uint32(b[end:]))
	if n > uint64(end) {
		return nil, nil, false
	}
	return b[:end-int(n)], b[end-int(n) : end], true
}

// cutChecksum splits b into the rest and a checksum at the end, a message with the fields
// algorithm (1, absent for CRC32C) and sum (2).
func cutChecksum(b []byte) (rest []byte, sum uint64, ok bool) {
	rest, message, ok := cutTail(b)
	if !ok {
		return nil, 0, false
	}
	if len(message) == 0 {
		return rest, 0, true // a sum of zero
	}
	const sumField = 2 << 3 // a varint
	if message[0] != sumField {
		return nil, 0, false
	}
	sum, n := binary.Uvarint(message[1:])
	return rest, sum, n == len(message)-1
}
