package backend

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Layout of badger's value logs and memtable logs, for version 8 of its manifest: a header
// of 20 bytes, then records
//
//	meta(1) userMeta(1) uvarint(klen) uvarint(vlen) uvarint(expires) key value crc32c(4)
//
// The last 8 bytes of the key are the inverted transaction number. A key length of zero
// ends the file.
const (
	logHeaderLen  = 20
	logMaxKeyLen  = 1 << 16
	logVersionLen = 8

	logMetaTxn = 1 << 6
	logMetaFin = 1 << 7

	logReadBuffer = 256 << 10
)

// logRecord is one record of a log. Key and value are valid during the visit only.
type logRecord struct {
	offset int64
	length int64
	meta   byte
	key    []byte
	value  []byte
}

// userKey returns the key without the transaction number.
func (r *logRecord) userKey() []byte { return r.key[:len(r.key)-logVersionLen] }

// version returns the transaction number.
func (r *logRecord) version() uint64 {
	return ^binary.BigEndian.Uint64(r.key[len(r.key)-logVersionLen:])
}

// logEnd describes the end of a log. Offsets and sizes are in bytes.
type logEnd struct {
	size int64 // of the file
	// valid is the offset after the last good record.
	valid int64
	// committed is the offset after the last record that does not belong to an
	// unfinished transaction. Badger continues to write there.
	committed int64
	// clean is set if only zeros follow valid.
	clean bool
}

var errBadRecord = errors.New("bad record")

// walkLog reads a log up to its first bad record and calls fn with each good one. fn may be
// nil. It does not map the file, so that a failing disk causes an error and not a fault.
func walkLog(path string, fn func(*logRecord) error) (logEnd, error) {
	f, err := os.Open(path)
	if err != nil {
		return logEnd{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return logEnd{}, err
	}
	end := logEnd{size: info.Size(), valid: logHeaderLen, committed: logHeaderLen}
	if end.size <= logHeaderLen {
		end.valid, end.committed, end.clean = end.size, end.size, true
		return end, nil
	}
	r := bufio.NewReaderSize(io.NewSectionReader(f, logHeaderLen, end.size-logHeaderLen), logReadBuffer)
	var rec logRecord
	var open uint64 // number of the unfinished transaction
	inTxn := false
	for end.valid < end.size {
		good, err := readRecord(r, end.valid, end.size-end.valid, &rec)
		if err == nil && !good {
			err = errBadRecord
		}
		if errors.Is(err, errBadRecord) {
			break
		}
		if err != nil {
			return end, err
		}
		if fn != nil {
			if err := fn(&rec); err != nil {
				return end, err
			}
		}
		end.valid += rec.length
		switch {
		case rec.meta&logMetaTxn != 0:
			if inTxn && open != rec.version() {
				return end, nil
			}
			inTxn, open = true, rec.version()
		case rec.meta&logMetaFin != 0:
			n, err := strconv.ParseUint(string(rec.value), 10, 64)
			if err != nil || !inTxn || n != open {
				return end, nil
			}
			inTxn, end.committed = false, end.valid
		case inTxn:
			return end, nil
		default:
			end.committed = end.valid
		}
	}
	end.clean, err = onlyZeros(f, end.valid, end.size)
	return end, err
}

// readRecord reads one record. limit is the number of bytes left in the file. good reports
// whether the checksum is right.
func readRecord(r *bufio.Reader, offset, limit int64, rec *logRecord) (good bool, err error) {
	var head [2 + 3*binary.MaxVarintLen64]byte
	n := 0
	next := func() (byte, error) {
		b, err := r.ReadByte()
		if err == nil {
			head[n] = b
			n++
		}
		return b, err
	}
	uvarint := func() (uint64, error) {
		var v uint64
		for shift := uint(0); shift < 64; shift += 7 {
			b, err := next()
			if err != nil {
				return 0, err
			}
			v |= uint64(b&0x7f) << shift
			if b < 0x80 {
				return v, nil
			}
		}
		return 0, errBadRecord
	}
	short := func(err error) error { // the file ends within the record
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return errBadRecord
		}
		return err
	}
	meta, err := next()
	if err != nil {
		return false, short(err)
	}
	if _, err := next(); err != nil {
		return false, short(err)
	}
	klen, err := uvarint()
	if err != nil {
		return false, short(err)
	}
	vlen, err := uvarint()
	if err != nil {
		return false, short(err)
	}
	if _, err := uvarint(); err != nil {
		return false, short(err)
	}
	body := klen + vlen + crc32.Size
	if klen < logVersionLen || klen > logMaxKeyLen || vlen > uint64(limit) || body > uint64(limit)-uint64(n) {
		return false, errBadRecord
	}
	if uint64(cap(rec.key)) < body {
		rec.key = make([]byte, body)
	}
	buf := rec.key[:body]
	if _, err := io.ReadFull(r, buf); err != nil {
		return false, short(err)
	}
	sum := crc32.Update(crc32.Checksum(head[:n], castagnoli), castagnoli, buf[:klen+vlen])
	rec.offset, rec.length, rec.meta = offset, int64(n)+int64(body), meta
	rec.key, rec.value = buf[:klen:cap(buf)], buf[klen:klen+vlen]
	return sum == binary.BigEndian.Uint32(buf[klen+vlen:]), nil
}

// findInLog returns the newest version of a key in a log. It ignores checksums, so that it
// finds damaged records too.
func findInLog(path string, key []byte) (version uint64, found bool) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, false
	}
	size := info.Size()
	r := bufio.NewReaderSize(io.NewSectionReader(f, logHeaderLen, size), logReadBuffer)
	var rec logRecord
	for at := int64(logHeaderLen); at < size; at += rec.length {
		if _, err := readRecord(r, at, size-at, &rec); err != nil {
			break
		}
		if bytes.Equal(rec.userKey(), key) && rec.version() >= version {
			version, found = rec.version(), true
		}
	}
	return version, found
}

// onlyZeros reports whether a part of a file is all zero.
func onlyZeros(f *os.File, from, to int64) (bool, error) {
	buf := make([]byte, logReadBuffer)
	for from < to {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), to-from)], from)
		for _, b := range buf[:n] {
			if b != 0 {
				return false, nil
			}
		}
		from += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// checkValueLog checks a value log that badger is about to rewrite and no longer writes to.
// Badger stops rewriting at the first bad record, and then deletes the file with all packs
// after it.
func checkValueLog(path string) error {
	var last PackID
	end, err := walkLog(path, func(r *logRecord) error {
		if id, ok := parsePackKey(r.userKey()); ok {
			last = id
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !end.clean {
		return &CorruptError{File: filepath.Base(path), Reason: fmt.Sprintf(
			"bad record at offset %d of %d, after pack %s", end.valid, end.size, last)}
	}
	return nil
}

const (
	valueLogExt = ".vlog"
	memLogExt   = ".mem"
	tableExt    = ".sst"
)

func valueLogPath(dir string, fid uint32) string {
	return filepath.Join(dir, fmt.Sprintf("%06d%s", fid, valueLogExt))
}

// fileNumber returns the number in the name of a file with the extension.
func fileNumber(name, ext string) (uint32, bool) {
	digits, ok := strings.CutSuffix(name, ext)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), err == nil
}

// numbered returns the numbers of the files of dir with the extension, in ascending order.
func numbered(dir, ext string) ([]uint32, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []uint32
	for _, f := range files {
		if n, ok := fileNumber(f.Name(), ext); ok {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// highest returns the largest number, 0 if there is none.
func highest(numbers []uint32) (n uint32) {
	for _, x := range numbers {
		n = max(n, x)
	}
	return n
}
