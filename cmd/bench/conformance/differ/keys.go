package differ

import (
	"fmt"
	"strings"
)

const (
	// keyCount is the number of distinct keys of a sequence. It is small, so that calls
	// refer to the same keys.
	keyCount = 200
	// absentKeys, the last of the pool, are read and deleted but never put.
	absentKeys = 4
)

// keyPool lists the keys of every sequence: groups with a common prefix, and
// the byte strings at which ranges and prefixes have their corner cases.
func keyPool() []string {
	pool := []string{
		"\x00", "\x00\x00", "\x00a", "\x01", "a", "a/", "a\x00", "a\xff", "a\xff\xff", "b", "b/", "b/0", "b\xff",
		"c", "c\x00", "c\x00\x00", "\x7f", "\x80", "\xc3\x28", "\xfe", "\xff", "\xff\x00", "\xff\xff", "\xff\xff\xff",
		"a key with blanks", "a/key/of/many/parts", strings.Repeat("long", 75), strings.Repeat("\xff", 40),
	}
	for i := range 60 {
		pool = append(pool, fmt.Sprintf("a/%02d", i))
	}
	for i := range 60 {
		pool = append(pool, fmt.Sprintf("b/0/%03d", i*7))
	}
	for i := 0; len(pool) < keyCount-absentKeys; i++ {
		pool = append(pool, fmt.Sprintf("d/%x/", i*i))
	}
	for i := range absentKeys {
		pool = append(pool, fmt.Sprintf("a/%02d/absent", i*15))
	}
	return pool
}

// prefixEnd returns the end of the range of all keys that begin with prefix, or "\x00"
// (no end) if every key from prefix on does.
func prefixEnd(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return fromKey
}

// fromKey as a range's end means every key from its beginning on.
const fromKey = "\x00"
