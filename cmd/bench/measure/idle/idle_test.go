package idle

import (
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
)

func TestJudge(t *testing.T) {
	cfg := Config{Servers: []servers.Server{{Name: "r"}, {Name: "j"}}}
	cpu := func(values ...float64) (samples []Sample) {
		for _, v := range values {
			samples = append(samples, Sample{CPU: v, Switches: v})
		}
		return samples
	}
	for name, c := range map[string]struct {
		reference, judged []Sample
		ok                bool
		what              string
	}{
		// The median of 0.5, 0.7 and 2; the ratio of the medians is 1.4.
		"at the bound":    {cpu(1, 2, 1), cpu(0.5, 1.4, 2), true, "(0.700x; context switches 0.70x), median of 3 pairs"},
		"above the bound": {cpu(1), cpu(0.71), false, "0.710x"},
		"not measured":    {cpu(0), cpu(1), false, "j: CPU"},
	} {
		got := judge(cfg, map[string][]Sample{"r": c.reference, "j": c.judged})
		if len(got) != 1 || got[0].OK != c.ok || !strings.Contains(got[0].What, c.what) {
			t.Errorf("%s: got %+v, want OK %v and %q", name, got, c.ok, c.what)
		}
	}
	cfg.Servers = cfg.Servers[:1]
	if got := judge(cfg, map[string][]Sample{"r": cpu(1)}); len(got) != 0 {
		t.Errorf("a server alone was judged: %v", got)
	}
}

func TestValidate(t *testing.T) {
	good := Config{Servers: []servers.Server{{}}, Pairs: 1, Window: 1}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no server": func(c *Config) { c.Servers = nil },
		"no pairs":  func(c *Config) { c.Pairs = 0 },
		"no window": func(c *Config) { c.Window = 0 },
	} {
		c := good
		spoil(&c)
		if c.validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSmall(t *testing.T) {
	results, err := run(t.Context(), Config{
		Servers: []servers.Server{benchtest.Troupe(t)}, Pairs: 2, Window: 500 * time.Millisecond, Dir: t.TempDir(), Out: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	samples := results["troupe"]
	if len(samples) != 2 || samples[0].CPU <= 0 || samples[0].Switches <= 0 || samples[0].Memory.Anon == 0 {
		t.Errorf("got %+v", samples)
	}
}
