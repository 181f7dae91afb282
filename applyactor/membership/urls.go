package membership

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// ParseURLs checks and sorts the URLs of a member, with etcd's errors: there is at least
// one; http and https need a port and have no path; unix and unixs name a socket.
func ParseURLs(list []string) ([]url.URL, error) {
	if len(list) == 0 {
		return nil, errors.New("no valid URLs given")
	}
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

// URLStrings formats URLs.
func URLStrings(urls []url.URL) []string {
	var s []string
	for i := range urls {
		s = append(s, urls[i].String())
	}
	return s
}
