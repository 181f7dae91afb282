// Command troupe runs a member: a replicated, strictly serializable key-value
// store that speaks etcd's API.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/cmd/internal/config"
	"github.com/troupe-db/troupe/cmd/internal/logging"
	"github.com/troupe-db/troupe/cmd/internal/node"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // cannot start, or cannot go on
	exitUsage  = 2 // the command line cannot be understood
)

const (
	// stopTimeout bounds a graceful stop. Answering the accepted requests takes
	// milliseconds and a slow disk seconds, and service managers kill a process that
	// has not stopped after half a minute or more.
	stopTimeout = 20 * time.Second
	// secondSignalAfter is how long after the first signal another one counts as a
	// second request to stop. Earlier ones belong to the first request: a process and
	// its group are often signalled at once, by GNU timeout for example.
	secondSignalAfter = time.Second
	// startStopTimeout bounds the end of a start that a signal interrupts. One that waits
	// for other members ends at once; one that reads a large store does not notice, and
	// loses nothing when the process ends.
	startStopTimeout = time.Second
)

func main() {
	// The first signal stops the member; a second one ends the process at once.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	p := process{stdout: os.Stdout, stderr: os.Stderr, signals: signals, start: startNode, notify: notifyManager}
	os.Exit(p.run(os.Args[1:], os.Environ()))
}

// smallGCPercent is GOGC with --small: the heap may grow by so many percent between
// two garbage collections, which takes less memory and more CPU than the default.
const smallGCPercent = 30

// startNode starts the real member.
func startNode(ctx context.Context, cfg *config.Config, logger zerolog.Logger) (member, error) {
	limitMemory(logger)
	if _, ok := os.LookupEnv("GOGC"); cfg.Node.Small && !ok {
		debug.SetGCPercent(smallGCPercent)
	}
	n, err := startMember(ctx, cfg, logger, func(reason error) {
		logger.Fatal().Err(reason).Msg("the member cannot go on") // exits with code 1
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// notifyManager notifies the service manager of the state of the process, if it
// asked for it with NOTIFY_SOCKET (systemd's Type=notify).
func notifyManager(state string) error {
	_, err := daemon.SdNotify(false, state)
	return err
}

// process is what a run depends on; tests replace it.
type process struct {
	stdout, stderr io.Writer
	signals        <-chan os.Signal
	// start returns when the member runs, or with an error when ctx ends before.
	start  func(ctx context.Context, cfg *config.Config, logger zerolog.Logger) (member, error)
	notify func(state string) error // the service manager
}

// member is a running node.
type member interface {
	// Ready is closed once client calls work.
	Ready() <-chan struct{}
	// Stop shuts the member down gracefully, within the deadline of ctx.
	Stop(ctx context.Context) error
	// Done receives an error if the member stops serving without a call to Stop.
	Done() <-chan error
}

// run is the whole life of the process, up to its exit code.
func (p *process) run(args, environ []string) int {
	cfg, warnings, err := config.Parse(args, environ)
	var usage *config.UsageError
	switch {
	case errors.Is(err, config.ErrHelp):
		return p.help()
	case errors.Is(err, config.ErrVersion):
		fmt.Fprint(p.stdout, versionText())
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(p.stderr, "%v\n%s", err, config.Usage)
		return exitUsage
	}
	log, logErr := p.openLog(cfg)
	defer func() { _ = log.Close() }() // the process ends; nothing can be done about an error
	for _, w := range warnings {
		log.Warn().Str("name", w.Name).Str("value", w.Value).Msg(w.Text)
	}
	if err = errors.Join(err, logErr); err != nil {
		return fail(log, "failed to verify flags", err)
	}
	log.Adopt()
	logConfig(log, cfg)
	return p.serve(cfg, log)
}

func (p *process) help() int {
	if err := config.WriteHelp(p.stdout); err != nil {
		return exitFailed
	}
	fmt.Fprint(p.stderr, config.Usage)
	return exitOK
}

// openLog opens the configured log. If that fails, it returns the error with the
// default log, in which the caller reports it.
func (p *process) openLog(cfg *config.Config) (*logging.Log, error) {
	var err error
	if cfg != nil {
		var log *logging.Log
		if log, err = logging.Open(cfg.Log, p.stdout, p.stderr); err == nil {
			return log, nil
		}
	}
	log, defaultErr := logging.Open(config.Log{
		Level: "info", Format: config.LogJSON, Outputs: []string{config.LogDefault},
	}, p.stdout, p.stderr)
	if defaultErr != nil {
		panic(fmt.Sprintf("troupe: cannot log to stderr: %v", defaultErr)) // opens nothing
	}
	return log, err
}

// fail logs a fatal line. It leaves the exit to the caller, unlike zerolog's own.
func fail(log *logging.Log, text string, err error) int {
	log.WithLevel(zerolog.FatalLevel).Err(err).Msg(text)
	return exitFailed
}

// logConfig logs the version and the effective configuration.
func logConfig(log *logging.Log, cfg *config.Config) {
	b := build()
	e := log.Info().Str("version", b.version).Str("git-sha", b.revision).Str("go-version", b.goVersion)
	for _, name := range slices.Sorted(maps.Keys(cfg.Effective)) {
		e = e.Str(name, cfg.Effective[name])
	}
	e.Msg("starting with this configuration")
}

// serve runs the member until a signal stops it or it cannot go on.
func (p *process) serve(cfg *config.Config, log *logging.Log) int {
	m, interrupted, err := p.begin(cfg, log)
	switch {
	case interrupted && err == nil:
		return p.stop(m, log)
	case interrupted:
		log.Info().AnErr("start", err).Msg("stopped")
		return exitOK
	case err != nil:
		return fail(log, "failed to start", err)
	}
	defer manageMemory(log.Logger, cfg.Node.Small)()
	for ready := m.Ready(); ; {
		select {
		case <-ready:
			p.notifyState(log, daemon.SdNotifyReady)
			ready = nil // once
		case err := <-m.Done():
			// As in etcd, a removal is no failure: a service manager that restarts failed
			// processes must not start the member again.
			if errors.Is(err, node.ErrRemoved) {
				log.Warn().Err(err).Msg("the member ended")
				return exitOK
			}
			if err != nil {
				return fail(log, "stopped serving", err)
			}
			log.Info().Msg("the member ended")
			return exitOK
		case s := <-p.signals:
			p.logSignal(log, s)
			return p.stop(m, log)
		}
	}
}

func (p *process) logSignal(log *logging.Log, s os.Signal) {
	log.Info().Stringer("signal", s).Msg("received signal; shutting down")
	p.notifyState(log, daemon.SdNotifyStopping)
}

// begin starts the member, which may have to wait for other members. A signal ends that:
// interrupted is then set, and m is nil unless the start was faster.
func (p *process) begin(cfg *config.Config, log *logging.Log) (m member, interrupted bool, err error) {
	type outcome struct {
		m   member
		err error
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := make(chan outcome, 1)
	go func() { // ends by ctx, or with the process
		m, err := p.start(ctx, cfg, log.Logger)
		started <- outcome{m, err}
	}()
	select {
	case o := <-started:
		return o.m, false, o.err
	case s := <-p.signals:
		p.logSignal(log, s)
	}
	cancel()
	select {
	case o := <-started:
		return o.m, true, o.err
	case <-time.After(startStopTimeout):
		return nil, true, errors.New("the start has not ended in time")
	}
}

// notifyState notifies the service manager. If that fails, the member continues: its
// clients do not depend on the service manager.
func (p *process) notifyState(log *logging.Log, state string) {
	if err := p.notify(state); err != nil {
		log.Error().Err(err).Str("state", state).Msg("failed to notify the service manager")
	}
}

// stop shuts the member down gracefully. If another signal arrives secondSignalAfter
// the first one or later, it returns at once.
func (p *process) stop(m member, log *logging.Log) int {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	began := time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- m.Stop(ctx) }() // ends by ctx, or with the process
	for {
		select {
		case s := <-p.signals:
			if time.Since(began) < secondSignalAfter {
				continue
			}
			return fail(log, "exiting at once", fmt.Errorf("second signal: %v", s))
		case err := <-stopped:
			if err != nil {
				return fail(log, "failed to stop gracefully", err)
			}
			log.Info().Msg("stopped")
			return exitOK
		}
	}
}
