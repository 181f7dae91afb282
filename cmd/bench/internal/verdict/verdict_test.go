package verdict

import (
	"errors"
	"io"
	"strings"
	"testing"
)

func TestPrint(t *testing.T) {
	good, bad := Of(true, "cheap: %d", 1), Of(false, "fast")
	for _, c := range []struct {
		verdicts []Verdict
		ok       bool
		text     string
	}{
		{nil, true, ""},
		{[]Verdict{good}, true, "ok   cheap: 1\n"},
		{[]Verdict{bad, good}, false, "FAIL fast\nok   cheap: 1\n"},
	} {
		var out strings.Builder
		if ok, err := Print(&out, c.verdicts); err != nil || ok != c.ok || out.String() != c.text {
			t.Errorf("%v: %v, %v, %q", c.verdicts, ok, err, out.String())
		}
	}
	_, closed := io.Pipe()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Print(closed, []Verdict{good}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v, want the error of the write", err)
	}
}
