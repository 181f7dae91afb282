// Package scenario has what the measuring subcommands share: common flags, the report,
// and the result file.
package scenario

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/troupe-db/troupe/cmd/bench/internal/host"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
)

// ErrFailed is returned by a subcommand that has already printed what failed.
var ErrFailed = errors.New("failed")

// Scenario is one run of a subcommand. The subcommand adds its own flags to Flags
// before it calls Parse.
type Scenario struct {
	Flags *flag.FlagSet
	Dir   string // -dir: parent of the data folders; empty means the system's temporary folder

	args []string
	file string // -name: the result file's name without its date; nothing is written if empty
}

// New returns a scenario with the flag -dir.
func New(name string, args []string) *Scenario {
	s := &Scenario{Flags: flag.NewFlagSet(name, flag.ContinueOnError), args: args}
	s.Flags.StringVar(&s.Dir, "dir", "", "folder for the data folders (default: the system's temporary folder)")
	return s
}

// NewReported returns a scenario that also has the flag -name, with its default.
func NewReported(name, file string, args []string) *Scenario {
	s := New(name, args)
	s.Flags.StringVar(&s.file, "name", file, "name of the result file; nothing is written if empty")
	return s
}

// Parse parses the arguments.
func (s *Scenario) Parse() error { return s.Flags.Parse(s.args) }

// Facts describes the machine and the source. Call it before measuring.
func (s *Scenario) Facts(ctx context.Context) (host.Facts, error) { return host.Describe(ctx, s.Dir) }

// Name returns the name of the result file.
func (s *Scenario) Name() string { return s.file }

// Report calls run, which prints its figures to out, and prints the verdicts. If
// the result file has a name it writes both to it. It returns ErrFailed if a bound
// does not hold.
func (s *Scenario) Report(ctx context.Context, run func(out io.Writer) ([]verdict.Verdict, error)) error {
	var facts host.Facts
	if s.file != "" {
		var err error
		if facts, err = s.Facts(ctx); err != nil {
			return err
		}
	}
	var text strings.Builder
	out := io.MultiWriter(os.Stdout, &text)
	verdicts, err := run(out)
	if err != nil {
		return err
	}
	name := s.Flags.Name()
	if _, err := fmt.Fprintln(out); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	ok, err := verdict.Print(out, verdicts)
	if err != nil {
		return err
	}
	if err := s.Save(facts, "Scenario: "+name, fmt.Sprintf("```\n%s```\n", text.String())); err != nil {
		return err
	}
	if !ok {
		return ErrFailed
	}
	return nil
}

// Page returns the text of a result file: the title, the facts with the command, and
// the body.
func (s *Scenario) Page(facts host.Facts, title, body string) string {
	command := strings.Join(append([]string{"go run .", s.Flags.Name()}, s.args...), " ")
	return fmt.Sprintf("# %s\n\n%s\n%s", title, facts.Markdown(command), body)
}

// Save writes the result file, unless its name is empty.
func (s *Scenario) Save(facts host.Facts, title, body string) error {
	if s.file == "" {
		return nil
	}
	bench, err := tools.Open(".")
	if err != nil {
		return err
	}
	path := filepath.Join(bench.Dir, "results", facts.Date+"-"+s.file+".md")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("scenario: %w", err)
	}
	if err := os.WriteFile(path, []byte(s.Page(facts, title, body)), 0o644); err != nil {
		return fmt.Errorf("scenario: %w", err)
	}
	fmt.Println("written:", path)
	return nil
}
