package failover

import (
	"fmt"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/ledger"
	"github.com/troupe-db/troupe/cmd/bench/measure/registers"
)

// bound is the limits of the gap between acknowledged writes; 0 for no limit.
type bound struct{ median, max time.Duration }

// electionTimeout is the default election timeout, of which a partition may take two.
const electionTimeout = time.Second

var bounds = map[Kind]bound{
	Terminated:  {median: 30 * time.Millisecond, max: 200 * time.Millisecond},
	Killed:      {median: 400 * time.Millisecond},
	Partitioned: {max: 2 * electionTimeout},
}

// summary is all rounds of one server.
type summary struct {
	gaps, elected, returned stats.Summary // in ms
	writes                  ledger.Balance
	failed                  Errors
	onLeader                int
	registers               registers.Result
	reads                   Errors
	broken                  []error
}

func summarise(rounds []Round) summary {
	var s summary
	var gaps, elected, returned []float64
	for _, r := range rounds {
		gaps = append(gaps, stats.Milliseconds(r.Gap))
		elected = append(elected, stats.Milliseconds(r.Elected))
		returned = append(returned, stats.Milliseconds(r.Returned))
		s.writes.Add(r.Writes)
		s.failed.Merge(r.Failed)
		s.onLeader += r.OnLeader
		s.registers.Add(r.Registers)
		s.reads.Merge(r.Reads)
		if r.Broken != nil {
			s.broken = append(s.broken, r.Broken)
		}
	}
	s.gaps, s.elected, s.returned = stats.Summarise(gaps), stats.Summarise(elected), stats.Summarise(returned)
	return s
}

// progress prints one round.
func progress(cfg Config, n int, who servers.Server, r Round) error {
	_, err := fmt.Fprintf(cfg.Out, "round %3d  %-7s gap %7.1f ms  elected %7.1f ms  returned %7.1f ms  %6d writes, failed on survivors %d, on the old leader %d\n",
		n+1, who.Name, stats.Milliseconds(r.Gap), stats.Milliseconds(r.Elected), stats.Milliseconds(r.Returned),
		r.Writes.Acknowledged, r.Failed.Count(), r.OnLeader)
	if err != nil {
		return fmt.Errorf("failover: %w", err)
	}
	return nil
}

// table prints the servers side by side.
func table(cfg Config, results [][]Round) error {
	text := fmt.Sprintf("\nleader: %s, %s rounds, %d members with %d writers each; median (least, greatest)\n", cfg.Kind, counts(results), cfg.Members, cfg.Writers)
	text += fmt.Sprintf("%-8s %28s %28s %28s %9s %5s %6s %10s %10s\n",
		"server", "gap between writes, ms", "another leader after, ms", "caught up after, ms", "writes", "lost", "twice", "survivors", "old leader")
	for i, rounds := range results {
		s := summarise(rounds)
		text += fmt.Sprintf("%-8s %28s %28s %28s %9d %5d %6d %10d %10d\n", cfg.Servers[i].Name,
			cell(s.gaps), cell(s.elected), cell(s.returned), s.writes.Acknowledged, s.writes.Lost, s.writes.Twice, s.failed.Count(), s.onLeader)
	}
	for i, rounds := range results {
		s, who := summarise(rounds), cfg.Servers[i].Name
		if len(s.failed) > 0 {
			text += fmt.Sprintf("%s, failed writes on surviving members: %s\n", who, s.failed)
		}
		if len(s.reads) > 0 {
			text += fmt.Sprintf("%s, failed reads on surviving members: %s\n", who, s.reads)
		}
		text += fmt.Sprintf("%s: %d reads and writes of shared keys, %d puts without an answer; rounds that are not linearizable: %d\n",
			who, s.registers.Calls, s.registers.Unknown, len(s.broken))
		for _, err := range s.broken {
			text += fmt.Sprintf("%s: %v\n", who, err)
		}
	}
	if _, err := fmt.Fprint(cfg.Out, text); err != nil {
		return fmt.Errorf("failover: %w", err)
	}
	return nil
}

// counts lists the rounds of the servers.
func counts(results [][]Round) string {
	var list []string
	for _, rounds := range results {
		list = append(list, fmt.Sprint(len(rounds)))
	}
	return strings.Join(list, " and ")
}

func cell(s stats.Summary) string {
	return fmt.Sprintf("%.1f (%.1f, %.1f)", s.Median, s.Min, s.Max)
}

// judge checks the bounds of the servers that are judged.
func judge(cfg Config, results [][]Round) []verdict.Verdict {
	var verdicts []verdict.Verdict
	limit := bounds[cfg.Kind]
	for i, rounds := range results {
		who := cfg.Servers[i]
		if !who.Judged() {
			continue
		}
		s := summarise(rounds)
		if limit.median > 0 {
			verdicts = append(verdicts, verdict.Of(s.gaps.Median <= stats.Milliseconds(limit.median),
				"%s: median gap between acknowledged writes at most %v (%.1f ms)", who.Name, limit.median, s.gaps.Median))
		}
		if limit.max > 0 {
			verdicts = append(verdicts, verdict.Of(s.gaps.Max <= stats.Milliseconds(limit.max),
				"%s: no gap above %v (%.1f ms)", who.Name, limit.max, s.gaps.Max))
		}
		verdicts = append(verdicts,
			verdict.Of(len(s.failed) == 0, "%s: no write through a surviving member fails (%d)", who.Name, s.failed.Count()),
			verdict.Of(s.writes.Acknowledged > 0 && s.writes.Lost == 0, "%s: no acknowledged write is lost (%d of %d)", who.Name, s.writes.Lost, s.writes.Acknowledged),
			verdict.Of(s.writes.Twice == 0, "%s: no write is applied twice (%d)", who.Name, s.writes.Twice),
			verdict.Of(s.writes.Wrong == 0, "%s: every key has the value that was written (%d have not)", who.Name, s.writes.Wrong),
			verdict.Of(s.registers.Calls > 0 && len(s.broken) == 0, "%s: %d reads and writes of shared keys are linearizable (%d rounds are not)",
				who.Name, s.registers.Calls, len(s.broken)))
	}
	return verdicts
}
