package config

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/troupe-db/troupe/applyactor/membership"
)

// value is a flag.Value that parses the text and stores the result in *p.
type value[T any] struct {
	p      *T
	parse  func(string) (T, error)
	format func(T) string
}

// Set implements flag.Value. On error, *p keeps its value.
func (v value[T]) Set(s string) error {
	x, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.p = x
	return nil
}

// String implements flag.Value.
func (v value[T]) String() string { return v.format(*v.p) }

// Numbers, durations and booleans fail with the error texts of package flag, as
// etcd's flags do.
var (
	errParse = errors.New("parse error")
	errRange = errors.New("value out of range")
)

func parseError(err error) error {
	if errors.Is(err, strconv.ErrRange) {
		return errRange
	}
	return errParse
}

func text(p *string) flag.Value {
	return value[string]{p, func(s string) (string, error) { return s, nil }, func(s string) string { return s }}
}

type boolValue struct{ value[bool] }

// IsBoolFlag makes package flag accept the flag without a value.
func (boolValue) IsBoolFlag() bool { return true }

func boolean(p *bool) flag.Value {
	return boolValue{value[bool]{p, func(s string) (bool, error) {
		b, err := strconv.ParseBool(s)
		if err != nil {
			return false, errParse
		}
		return b, nil
	}, strconv.FormatBool}}
}

func duration(p *time.Duration) flag.Value {
	return value[time.Duration]{p, func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, errParse
		}
		return d, nil
	}, time.Duration.String}
}

// maxMillis keeps a number of milliseconds from overflowing a Duration; every
// larger number is above the limits of the flags that use it.
const maxMillis = math.MaxInt64 / int64(time.Millisecond)

// millis is a duration given as a number of milliseconds.
func millis(p *time.Duration) flag.Value {
	return value[time.Duration]{p, func(s string) (time.Duration, error) {
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			return 0, parseError(err)
		}
		return time.Duration(min(n, uint64(maxMillis))) * time.Millisecond, nil
	}, func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }}
}

// integer is a signed number.
func integer[T int | int64](p *T) flag.Value {
	return value[T]{p, func(s string) (T, error) {
		n, err := strconv.ParseInt(s, 0, 64)
		if err != nil {
			return 0, parseError(err)
		}
		return T(n), nil
	}, func(n T) string { return strconv.FormatInt(int64(n), 10) }}
}

// natural is an unsigned number that is stored in a signed integer. Values that do
// not fit are out of range.
func natural[T int | int64](p *T) flag.Value {
	return value[T]{p, func(s string) (T, error) {
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			return 0, parseError(err)
		}
		if n > math.MaxInt64 {
			return 0, errRange
		}
		return T(n), nil
	}, func(n T) string { return strconv.FormatInt(int64(n), 10) }}
}

// limit is a number that must not be negative; 0 stands for the default.
func limit[T int | int64](p *T) flag.Value {
	otherwise := *p
	v := integer(p).(value[T])
	parse := v.parse
	v.parse = func(s string) (T, error) {
		switch n, err := parse(s); {
		case err != nil:
			return 0, err
		case n < 0:
			return 0, errors.New("must be >=0")
		case n == 0:
			return otherwise, nil
		default:
			return n, nil
		}
	}
	return v
}

// natural32 is etcd's uint32, with the errors of package strconv.
func natural32(p *uint32) flag.Value {
	return value[uint32]{p, func(s string) (uint32, error) {
		n, err := strconv.ParseUint(s, 0, 32)
		return uint32(n), err
	}, func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }}
}

// choice is one of several words.
func choice(p *string, words ...string) flag.Value {
	return value[string]{p, func(s string) (string, error) {
		if !slices.Contains(words, s) {
			return "", errors.New("invalid value")
		}
		return s, nil
	}, func(s string) string { return s }}
}

// choices is a list of some of several words.
func choices(p *string, words ...string) flag.Value {
	return value[string]{p, func(s string) (string, error) {
		for word := range strings.SplitSeq(s, ",") {
			if !slices.Contains(words, word) {
				return "", fmt.Errorf("invalid value %q", word)
			}
		}
		return s, nil
	}, func(s string) string { return s }}
}

// level is a log level, stored in lower case.
func level(p *string) flag.Value {
	return value[string]{p, func(s string) (string, error) {
		s = strings.ToLower(s)
		if !slices.Contains([]string{"debug", "info", "warn", "error", "panic", "fatal"}, s) {
			return "", fmt.Errorf("unrecognized level: %q", s)
		}
		return s, nil
	}, func(s string) string { return s }}
}

// words is a list, sorted and without duplicates.
func words(p *[]string) flag.Value {
	return value[[]string]{p, func(s string) ([]string, error) {
		list := strings.Split(s, ",")
		slices.Sort(list)
		return slices.Compact(list), nil
	}, func(list []string) string { return strings.Join(list, ",") }}
}

// list is a list in its given order. As in etcd, an empty text is a list of an empty word.
func list(p *[]string) flag.Value {
	return value[[]string]{p, func(s string) ([]string, error) { return strings.Split(s, ","), nil },
		func(list []string) string { return strings.Join(list, ",") }}
}

// origins is a list of URLs, or "*".
func origins(p *[]string) flag.Value {
	return value[[]string]{p, func(s string) ([]string, error) {
		if s == "" || s == "*" {
			return []string{"*"}, nil
		}
		urls, err := membership.ParseURLs(strings.Split(s, ","))
		return slices.Compact(membership.URLStrings(urls)), err
	}, func(list []string) string { return strings.Join(list, ",") }}
}

// urls is a list of URLs, sorted and without duplicates. An empty text does not
// change the list.
func urls(p *[]url.URL) flag.Value {
	return value[[]url.URL]{p, func(s string) ([]url.URL, error) {
		if s == "" {
			return *p, nil
		}
		list, err := membership.ParseURLs(strings.Split(s, ","))
		return slices.CompactFunc(list, func(a, b url.URL) bool { return a.String() == b.String() }), err
	}, func(list []url.URL) string { return strings.Join(membership.URLStrings(list), ",") }}
}

// ignored accepts any value, or none, for flags that etcd has removed. They take a
// value only after "=".
type ignored struct{ boolValue }

func newIgnored() flag.Value {
	return ignored{boolValue{value[bool]{new(bool),
		func(string) (bool, error) { return true, nil }, func(bool) string { return "" }}}}
}
