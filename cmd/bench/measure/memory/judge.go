package memory

import (
	"fmt"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
)

// The bounds that are checked.
const (
	loadedMax      = 1.0 // resident memory over the reference's, after loading
	restartedMax   = 0.6 // the same after a restart
	smallDiskMax   = 40_000_000
	smallMemoryMax = 32 << 20
)

func header(cfg Config) error {
	_, err := fmt.Fprintf(cfg.Out, "%d keys of %d bytes with values of %d\n%s\n", cfg.Keys, keyBytes, valueBytes,
		"server                        resident, MiB  anonymous  files  bytes a key")
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	return nil
}

func row(cfg Config, who servers.Server, stage string, m proc.Memory) error {
	_, err := fmt.Fprintf(cfg.Out, "%-7s %-22s %12.0f %10.0f %6.0f %12.0f\n",
		who.Name, stage, stats.MiB(m.Resident), stats.MiB(m.Anon), stats.MiB(m.File), float64(m.Resident)/float64(cfg.Keys))
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	return nil
}

// judge checks the bounds. The memory per key has a bound only if there is a reference.
func judge(cfg Config, r Result) []verdict.Verdict {
	var verdicts []verdict.Verdict
	ratio := func(when string, most float64, own, reference proc.Memory) {
		found := float64(own.Resident) / float64(reference.Resident)
		verdicts = append(verdicts, verdict.Of(reference.Resident > 0 && found <= most, "%s, %s: resident memory at most %.2fx that of %s: %.0f / %.0f MiB = %.3fx",
			cfg.Judged.Name, when, most, cfg.Reference.Name, stats.MiB(own.Resident), stats.MiB(reference.Resident), found))
	}
	if cfg.Reference.Binary != "" && cfg.Judged.Binary != "" {
		ratio("after loading", loadedMax, r.Judged.Loaded, r.Reference.Loaded)
		ratio("after a restart", restartedMax, r.Judged.Restarted, r.Reference.Restarted)
	}
	if cfg.Small.Binary != "" {
		s := r.Small
		verdicts = append(verdicts,
			verdict.Of(s.Disk <= smallDiskMax, "%s: a fresh member takes at most %d MB on disk (%.1f MB)", cfg.Small.Name, smallDiskMax/1_000_000, float64(s.Disk)/1e6),
			verdict.Of(s.Memory.Resident <= smallMemoryMax, "%s: a fresh member at rest holds at most %d MiB of memory (%.1f MiB: %.1f anonymous, %.1f of files)",
				cfg.Small.Name, smallMemoryMax>>20, stats.MiB(s.Memory.Resident), stats.MiB(s.Memory.Anon), stats.MiB(s.Memory.File)))
	}
	return verdicts
}
