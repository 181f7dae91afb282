package config

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// urlsValue is a list of URLs, sorted and without duplicates. Setting it to ""
// leaves it as it is.
type urlsValue struct{ urls *[]url.URL }

func urlsVar(fs *flag.FlagSet, p *[]url.URL, name, value, usage string) {
	v := urlsValue{p}
	if err := v.Set(value); err != nil {
		panic(fmt.Sprintf("config: default of --%s: %v", name, err))
	}
	fs.Var(v, name, usage)
}

// Set implements flag.Value.
func (v urlsValue) Set(s string) error {
	if s == "" {
		return nil
	}
	urls, err := parseURLs(strings.Split(s, ","))
	if err != nil {
		return err
	}
	*v.urls = slices.CompactFunc(urls, func(a, b url.URL) bool { return a.String() == b.String() })
	return nil
}

// String implements flag.Value.
func (v urlsValue) String() string {
	if v.urls == nil {
		return ""
	}
	return strings.Join(urlStrings(*v.urls), ",")
}

func urlStrings(urls []url.URL) []string {
	s := make([]string, len(urls))
	for i := range urls {
		s[i] = urls[i].String()
	}
	return s
}

// parseURLs checks and sorts URLs. http and https need a port and have no path;
// unix and unixs name a socket.
func parseURLs(list []string) ([]url.URL, error) {
	urls := make([]url.URL, 0, len(list))
	for _, s := range list {
		s = strings.TrimSpace(s)
		u, err := url.Parse(s)
		if err != nil {
			return nil, err
		}
		if err := checkURL(u, s); err != nil {
			return nil, err
		}
		urls = append(urls, *u)
	}
	slices.SortFunc(urls, func(a, b url.URL) int { return strings.Compare(a.String(), b.String()) })
	return urls, nil
}

func checkURL(u *url.URL, s string) error {
	switch u.Scheme {
	case "http", "https":
		if _, _, err := net.SplitHostPort(u.Host); err != nil {
			return fmt.Errorf(`URL address does not have the form "host:port": %s`, s)
		}
		if u.Path != "" {
			return fmt.Errorf("URL must not contain a path: %s", s)
		}
	case "unix", "unixs":
	default:
		return fmt.Errorf("URL scheme must be http, https, unix, or unixs: %s", s)
	}
	return nil
}

// choiceValue is one of several words.
type choiceValue struct {
	value   *string
	choices []string
}

func choiceVar(fs *flag.FlagSet, p *string, name, usage string, choices ...string) {
	*p = choices[0]
	fs.Var(choiceValue{p, choices}, name, usage)
}

// Set implements flag.Value.
func (v choiceValue) Set(s string) error {
	if !slices.Contains(v.choices, s) {
		return errors.New("invalid value")
	}
	*v.value = s
	return nil
}

// String implements flag.Value.
func (v choiceValue) String() string {
	if v.value == nil {
		return ""
	}
	return *v.value
}

// levelValue is a log level, in small letters.
type levelValue struct{ level *string }

func levelVar(fs *flag.FlagSet, p *string, name, value, usage string) {
	*p = value
	fs.Var(levelValue{p}, name, usage)
}

// Set implements flag.Value.
func (v levelValue) Set(s string) error {
	s = strings.ToLower(s)
	if !slices.Contains([]string{"debug", "info", "warn", "error", "panic", "fatal"}, s) {
		return fmt.Errorf("unrecognized level: %q", s)
	}
	*v.level = s
	return nil
}

// String implements flag.Value.
func (v levelValue) String() string {
	if v.level == nil {
		return ""
	}
	return *v.level
}

// listValue is a list of words, sorted and without duplicates.
type listValue struct{ list *[]string }

func listVar(fs *flag.FlagSet, p *[]string, name, value, usage string) {
	*p = []string{value}
	fs.Var(listValue{p}, name, usage)
}

// Set implements flag.Value.
func (v listValue) Set(s string) error {
	list := strings.Split(s, ",")
	slices.Sort(list)
	*v.list = slices.Compact(list)
	return nil
}

// String implements flag.Value.
func (v listValue) String() string {
	if v.list == nil {
		return ""
	}
	return strings.Join(*v.list, ",")
}

type uint32Value struct{ n *uint32 }

func uint32Var(fs *flag.FlagSet, p *uint32, name string, value uint32, usage string) {
	*p = value
	fs.Var(uint32Value{p}, name, usage)
}

// Set implements flag.Value.
func (v uint32Value) Set(s string) error {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return err
	}
	*v.n = uint32(n)
	return nil
}

// String implements flag.Value.
func (v uint32Value) String() string {
	if v.n == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*v.n), 10)
}
