package config

import (
	"fmt"
	"io"
	"strings"
)

// Usage is printed after a UsageError.
const Usage = `Usage:

  troupe [flags]
    Start a member.

  troupe --version
    Show the version.

  troupe -h | --help
    Show all flags.
`

// WriteHelp lists all flags by section, with their defaults and usage, and marks those
// that have no effect.
func WriteHelp(w io.Writer) error {
	p := newParser()
	var b strings.Builder
	fmt.Fprintln(&b, "Flags. Each may be given as an environment variable instead: --data-dir as ETCD_DATA_DIR.")
	for _, s := range registry {
		fmt.Fprintf(&b, "\n%s:\n", s.title)
		for i := range s.flags {
			f := &s.flags[i]
			fmt.Fprintf(&b, "  --%s '%s'\n", f.name, p.flags.Lookup(f.name).DefValue)
			switch f.state {
			case works:
				fmt.Fprintf(&b, "    %s\n", f.usage)
			case warns, refused:
				fmt.Fprintf(&b, "    [%s] %s.\n", f.state, strings.ToUpper(f.usage[:1])+f.usage[1:])
			}
		}
	}
	fmt.Fprintf(&b, `
[%s]: the flag is accepted and a warning is logged. [%s]: the member does not start.
`, warns, refused)
	_, err := io.WriteString(w, b.String())
	return err
}
