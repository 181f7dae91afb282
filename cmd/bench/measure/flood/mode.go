package flood

import (
	"fmt"
	"strings"
	"time"
)

// The modes.
const (
	Scans      = "scans"
	ScansWide  = "scans-wide"
	SortedTxn  = "sorted-txn"
	Nonreaders = "nonreaders"
	Resets     = "resets"
)

// Mode is one kind of flood with its sizes.
type Mode struct {
	Name     string
	Keys     int           // in the store, with 1 KiB each
	Clients  int           // each with a connection of its own
	Deadline time.Duration // of one request; 0 for none
	Length   time.Duration // of the flood; 0 if Requests ends it
	Requests int           // of all clients together; 0 if Length ends it
}

// modes lists every mode with its sizes and bounds, in the order in which
// `-mode all` runs them.
var modes = []struct {
	Mode
	attack attack
	bounds bounds
}{
	{Mode{Name: Scans, Keys: 100_000, Clients: 20, Deadline: 100 * time.Millisecond, Length: 10 * time.Second}, scan, scanBounds},
	{Mode{Name: ScansWide, Keys: 200_000, Clients: 60, Deadline: 50 * time.Millisecond, Length: 10 * time.Second}, scan, scanBounds},
	{Mode{Name: SortedTxn, Keys: 121_000, Clients: 2, Length: 10 * time.Second}, sortedTxn, bounds{putP99: 50 * time.Millisecond}},
	{Mode{Name: Nonreaders, Keys: 100_000, Clients: 200, Length: 15 * time.Second}, neverRead, bounds{growth: 256 << 20, putP99: 50 * time.Millisecond, getP99: 50 * time.Millisecond}},
	{Mode{Name: Resets, Keys: 2_000, Clients: 8, Requests: 100_000}, reset, bounds{growth: 64 << 20}},
}

var scanBounds = bounds{growth: 256 << 20, kept: 64 << 20, putP99: 50 * time.Millisecond, putMax: 400 * time.Millisecond}

// Modes lists the names of the modes.
func Modes() []string {
	var names []string
	for _, m := range modes {
		names = append(names, m.Name)
	}
	return names
}

// ParseModes resolves a comma-separated list of names, or all.
func ParseModes(names string) ([]Mode, error) {
	list := Modes()
	if names != "all" {
		list = strings.Split(names, ",")
	}
	var chosen []Mode
	for _, name := range list {
		m, err := DefaultMode(name)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, m)
	}
	return chosen, nil
}

// DefaultMode returns the mode of that name with its sizes.
func DefaultMode(name string) (Mode, error) {
	for _, m := range modes {
		if m.Name == name {
			return m.Mode, nil
		}
	}
	return Mode{}, fmt.Errorf("flood: unknown mode %q", name)
}

func (m Mode) validate() error {
	if _, err := DefaultMode(m.Name); err != nil {
		return err
	}
	if m.Keys < 1 || m.Clients < 1 || m.Deadline < 0 || (m.Length <= 0) == (m.Requests <= 0) {
		return fmt.Errorf("flood: %s: keys, clients, and either a length or a number of requests are needed", m.Name)
	}
	return nil
}

// attack returns the function that floods a server in this mode.
func (m Mode) attack() attack {
	for _, known := range modes {
		if known.Name == m.Name {
			return known.attack
		}
	}
	panic("flood: mode " + m.Name + " was never validated")
}

// bounds returns the limits of the mode.
func (m Mode) bounds() bounds {
	for _, known := range modes {
		if known.Name == m.Name {
			return known.bounds
		}
	}
	panic("flood: mode " + m.Name + " was never validated")
}

// bounds are the limits of a mode; 0 means that there is none.
type bounds struct {
	growth int64 // of resident memory, from before the flood to its peak; bytes
	kept   int64 // of resident memory, from before the flood to rest after it; bytes
	putP99 time.Duration
	putMax time.Duration
	getP99 time.Duration // of gets of one key
}
