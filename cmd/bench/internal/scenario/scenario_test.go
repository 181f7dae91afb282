package scenario

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/troupe-db/troupe/cmd/bench/internal/host"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
)

func TestReport(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		verdicts []verdict.Verdict
		err      error
		want     error
	}{
		"all bounds hold":     {[]verdict.Verdict{verdict.Of(true, "a")}, nil, nil},
		"a bound fails":       {[]verdict.Verdict{verdict.Of(true, "a"), verdict.Of(false, "b")}, nil, ErrFailed},
		"nothing is measured": {nil, broken, broken},
	} {
		s := New("test", nil)
		if err := s.Parse(); err != nil {
			t.Fatal(err)
		}
		err := s.Report(context.Background(), func(io.Writer) ([]verdict.Verdict, error) { return c.verdicts, c.err })
		if !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestPageSaysHowItCameToBe(t *testing.T) {
	s := NewReported("test", "", []string{"-name", "x", "-dir", "y"})
	if err := s.Parse(); err != nil {
		t.Fatal(err)
	}
	if s.Name() != "x" || s.Dir != "y" {
		t.Errorf("got name %q and folder %q, want x and y", s.Name(), s.Dir)
	}
	page := s.Page(host.Facts{Commit: "abc"}, "Title", "body\n")
	for _, want := range []string{"# Title\n\n", "`go run . test -name x -dir y`", "abc", "\n\nbody\n"} {
		if !strings.Contains(page, want) {
			t.Errorf("got %q, want %q in it", page, want)
		}
	}
}
