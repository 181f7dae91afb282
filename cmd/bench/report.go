package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/troupe-db/troupe/cmd/bench/internal/host"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
)

// report runs a scenario that prints its figures to a writer, prints the
// verdicts, writes both to a result file if that has a name, and returns
// errFailed when a bound does not hold.
func report(ctx context.Context, scenario string, args []string, name, dir string, run func(out io.Writer) ([]verdict.Verdict, error)) error {
	facts, err := host.Describe(ctx, dir)
	if err != nil {
		return err
	}
	var text strings.Builder
	out := io.MultiWriter(os.Stdout, &text)
	verdicts, err := run(out)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out); err != nil {
		return fmt.Errorf("%s: %w", scenario, err)
	}
	ok, err := verdict.Print(out, verdicts)
	if err != nil {
		return err
	}
	command := strings.Join(append([]string{"go run .", scenario}, args...), " ")
	page := fmt.Sprintf("# Scenario: %s\n\n%s\n```\n%s```\n", scenario, facts.Markdown(command), text.String())
	if err := save(name, facts.Date, page); err != nil {
		return err
	}
	if !ok {
		return errFailed
	}
	return nil
}
