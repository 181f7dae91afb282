// Package logging builds a member's log: one JSON object per line with the keys
// level, ts, caller and msg, as in etcd's log, so that tools for etcd's log work with
// Troupe's. Libraries write to the same log.
package logging

import (
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc/grpclog"

	"github.com/troupe-db/troupe/cmd/internal/config"
)

// timeFormat is RFC 3339 in UTC with microseconds.
const timeFormat = "2006-01-02T15:04:05.000000Z0700"

// In zerolog the names and formats of keys are package variables, not properties of a
// logger. They are set once, before anything can log.
func init() {
	zerolog.TimestampFieldName = "ts"
	zerolog.MessageFieldName = "msg"
	zerolog.TimeFieldFormat = timeFormat
	zerolog.TimestampFunc = func() time.Time { return time.Now().UTC() }
	zerolog.CallerMarshalFunc = func(_ uintptr, file string, line int) string { return place(file, line) }
}

// place shortens the path of a source file to its folder and name, which identify it
// and do not depend on the machine.
func place(file string, line int) string {
	dir, name := filepath.Split(file)
	return filepath.Base(dir) + "/" + name + ":" + strconv.Itoa(line)
}

// Log is an open log.
type Log struct {
	zerolog.Logger
	files []*os.File
}

// Open opens the outputs of a configuration. Files are created if they do not exist,
// and appended to.
func Open(cfg config.Log, stdout, stderr io.Writer) (*Log, error) {
	level, err := zerolog.ParseLevel(cfg.Level)
	if err != nil {
		return nil, fmt.Errorf("log level: %w", err)
	}
	l := &Log{}
	writers := make([]io.Writer, 0, len(cfg.Outputs))
	for _, output := range cfg.Outputs {
		w, err := l.output(output, stdout, stderr)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		if cfg.Format == config.LogConsole {
			w = zerolog.ConsoleWriter{Out: w, NoColor: true, TimeFormat: timeFormat}
		}
		writers = append(writers, w)
	}
	l.Logger = zerolog.New(zerolog.SyncWriter(zerolog.MultiLevelWriter(writers...))).
		Level(level).With().Timestamp().Caller().Logger()
	return l, nil
}

func (l *Log) output(name string, stdout, stderr io.Writer) (io.Writer, error) {
	switch name {
	case config.LogDefault, config.LogStderr:
		return stderr, nil
	case config.LogStdout:
		return stdout, nil
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log output: %w", err)
	}
	l.files = append(l.files, f)
	return f, nil
}

// Close closes the files. Nothing may be logged afterwards.
func (l *Log) Close() error {
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Adopt makes gRPC and everything that uses Go's standard logger write to l. It
// changes the whole process and must be called before gRPC is used.
func (l *Log) Adopt() {
	grpclog.SetLoggerV2(grpcLogger{l.With().Str("library", "grpc").Logger()})
	stdlog.SetFlags(0)
	stdlog.SetOutput(lineWriter{l.With().Str("library", "std").Logger()})
}

// lineWriter logs the output of Go's standard logger, which net/http uses to report
// failed connections.
type lineWriter struct{ zerolog.Logger }

func (w lineWriter) Write(b []byte) (int, error) {
	w.Warn().Msg(strings.TrimRight(string(b), "\n"))
	return len(b), nil
}

// grpcLogger lowers gRPC's levels by one: gRPC logs an error when a connection ends,
// which is normal operation for a server.
type grpcLogger struct{ zerolog.Logger }

var _ grpclog.LoggerV2 = grpcLogger{}

// text formats v as fmt.Sprintln does, without the newline.
func text(v []any) string { return strings.TrimSuffix(fmt.Sprintln(v...), "\n") }

func (l grpcLogger) Info(v ...any)                  { l.Debug().Msg(fmt.Sprint(v...)) }
func (l grpcLogger) Infoln(v ...any)                { l.Debug().Msg(text(v)) }
func (l grpcLogger) Infof(format string, v ...any)  { l.Debug().Msgf(format, v...) }
func (l grpcLogger) Warning(v ...any)               { l.warning(fmt.Sprint(v...)) }
func (l grpcLogger) Warningln(v ...any)             { l.warning(text(v)) }
func (l grpcLogger) Warningf(f string, v ...any)    { l.warning(fmt.Sprintf(f, v...)) }
func (l grpcLogger) Error(v ...any)                 { l.Warn().Msg(fmt.Sprint(v...)) }
func (l grpcLogger) Errorln(v ...any)               { l.Warn().Msg(text(v)) }
func (l grpcLogger) Errorf(format string, v ...any) { l.Warn().Msgf(format, v...) }
func (l grpcLogger) Fatal(v ...any)                 { l.Logger.Fatal().Msg(fmt.Sprint(v...)) }
func (l grpcLogger) Fatalln(v ...any)               { l.Logger.Fatal().Msg(text(v)) }
func (l grpcLogger) Fatalf(format string, v ...any) { l.Logger.Fatal().Msgf(format, v...) }

// redial is in gRPC's warning of an attempt to connect that failed.
const redial = "addrConn.createTransport failed"

// warning logs a warning of gRPC. Attempts to connect to a peer are repeated several times a
// second while it is down; the transport logs the reason itself, once in a while.
func (l grpcLogger) warning(text string) {
	if strings.Contains(text, redial) {
		l.Debug().CallerSkipFrame(1).Msg(text)
		return
	}
	l.Logger.Info().CallerSkipFrame(1).Msg(text)
}

// V reports whether gRPC should format a message: its verbose messages are logged at
// the debug level only.
func (l grpcLogger) V(level int) bool { return level <= 0 && l.GetLevel() <= zerolog.DebugLevel }
