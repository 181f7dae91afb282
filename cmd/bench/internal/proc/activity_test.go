package proc

import (
	"testing"
	"time"
)

func TestParseActivity(t *testing.T) {
	const status = "Threads:\t9\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n"
	got, err := parseActivity("1500000 77 3\n", status)
	if want := (Activity{OnCPU: 1500 * time.Microsecond, Switches: 42}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for name, bad := range map[string][2]string{
		"no schedstat":        {"", status},
		"a missing count":     {"1 2 3\n", "voluntary_ctxt_switches:\t40\n"},
		"a count that is not": {"1 2 3\n", "voluntary_ctxt_switches:\tx\nnonvoluntary_ctxt_switches:\t2\n"},
	} {
		if got, err := parseActivity(bad[0], bad[1]); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

func TestActivityOfAProcess(t *testing.T) {
	cfg := fakeServer(t, "echo ready to serve client requests\nwhile :; do sleep 0.01; done\n")
	s, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if a, err := s.Activity(); err != nil || a.OnCPU == 0 || a.Switches == 0 {
		t.Errorf("got %+v, %v", a, err)
	}
}
