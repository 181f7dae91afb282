package config

import (
	"flag"
	"fmt"
	"io"
	"strings"
)

// Usage is what follows a complaint about the command line.
const Usage = `Usage:

  troupe [flags]
    Start a member.

  troupe --version
    Show the version.

  troupe -h | --help
    Show all flags.
`

// WriteHelp lists all flags with their defaults.
func WriteHelp(w io.Writer) error {
	p := newParser()
	var b strings.Builder
	write := func(f *flag.Flag) {
		fmt.Fprintf(&b, "  --%s '%s'\n", f.Name, f.DefValue)
		if f.Usage != "" {
			fmt.Fprintf(&b, "    %s\n", f.Usage)
		}
	}
	fmt.Fprintln(&b, "Flags. Each may be given as an environment variable too: --data-dir as ETCD_DATA_DIR.")
	p.flags.VisitAll(func(f *flag.Flag) {
		if !isOther(f.Name) && f.Usage != "" {
			write(f)
		}
	})
	fmt.Fprintln(&b, "\nFlags of etcd that are accepted and have no effect yet.")
	for _, o := range notYet {
		fmt.Fprintf(&b, "  --%s '%s'\n", o.name, o.value)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
