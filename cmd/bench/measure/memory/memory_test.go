package memory

import (
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
)

func TestValidate(t *testing.T) {
	good := Config{Judged: servers.Server{Binary: "x"}, Keys: 1}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no server":     func(c *Config) { c.Judged = servers.Server{} },
		"no keys":       func(c *Config) { c.Keys = 0 },
		"negative rest": func(c *Config) { c.Rest = -1 },
	} {
		c := good
		spoil(&c)
		if c.validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestJudge(t *testing.T) {
	cfg := Config{Reference: servers.Server{Name: "r", Binary: "x"}, Judged: servers.Server{Name: "j", Binary: "x"}, Small: servers.Server{Name: "s", Binary: "x"}}
	good := func() Result {
		return Result{
			Reference: Sample{Loaded: proc.Memory{Resident: 1000}, Restarted: proc.Memory{Resident: 1000}},
			Judged:    Sample{Loaded: proc.Memory{Resident: 1000}, Restarted: proc.Memory{Resident: 600}},
			Small:     Small{Disk: 40_000_000, Memory: proc.Memory{Resident: 32 << 20}},
		}
	}
	failures := func(cfg Config, r Result) []string { return benchtest.Failed(judge(cfg, r)) }
	if failed := failures(cfg, good()); len(failed) != 0 {
		t.Errorf("good figures fail: %q", failed)
	}
	for want, spoil := range map[string]func(*Result){
		"j, after loading: resident memory at most 1.00x":   func(r *Result) { r.Judged.Loaded.Resident++ },
		"j, after a restart: resident memory at most 0.60x": func(r *Result) { r.Judged.Restarted.Resident++ },
		"j, after a restart: resident memory":               func(r *Result) { r.Reference.Restarted.Resident = 0 },
		"s: a fresh member takes at most 40 MB":             func(r *Result) { r.Small.Disk++ },
		"s: a fresh member at rest holds at most 32 MiB":    func(r *Result) { r.Small.Memory.Resident++ },
	} {
		r := good()
		spoil(&r)
		if failed := failures(cfg, r); len(failed) != 1 || !strings.HasPrefix(failed[0], want) {
			t.Errorf("got failures %q, want one about %q", failed, want)
		}
	}
	if got := judge(Config{Judged: cfg.Judged}, Result{}); len(got) != 0 {
		t.Errorf("without a reference: %v", got)
	}
}

// A short form of the scenario. Its figures mean nothing, except those of the small
// member, which must be within their bounds.
func TestSmall(t *testing.T) {
	troupe := benchtest.Troupe(t)
	cfg := Config{
		Judged: troupe, Small: servers.Server{Name: "small", Binary: troupe.Binary, Args: []string{"--small"}},
		Keys: 1000, Rest: 100 * time.Millisecond, Dir: t.TempDir(), Out: t.Output(),
	}
	r, err := run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r.Judged.Loaded.Anon == 0 || r.Judged.Restarted.Anon == 0 || r.Judged.Disk == 0 || r.Small.Disk == 0 || r.Small.Memory.Resident == 0 {
		t.Errorf("got %+v", r)
	}
	if r.Small.Disk > smallDiskMax {
		t.Errorf("a fresh small member takes %d bytes on disk, want at most %d", r.Small.Disk, smallDiskMax)
	}
}
