package raftactor

import (
	"fmt"
	"strings"

	"github.com/rs/zerolog"
)

// Logger is a raft.Logger that writes to a zerolog logger.
type Logger struct{ Log zerolog.Logger }

func (l *Logger) Debug(v ...any)                 { l.Log.Debug().Msg(fmt.Sprint(v...)) }
func (l *Logger) Debugf(format string, v ...any) { l.Log.Debug().Msgf(format, v...) }
func (l *Logger) Info(v ...any)                  { l.Log.Info().Msg(fmt.Sprint(v...)) }
func (l *Logger) Infof(format string, v ...any) {
	l.Log.WithLevel(infoLevel(format)).Msgf(format, v...)
}
func (l *Logger) Warning(v ...any)                 { l.Log.Warn().Msg(fmt.Sprint(v...)) }
func (l *Logger) Warningf(format string, v ...any) { l.Log.Warn().Msgf(format, v...) }
func (l *Logger) Error(v ...any)                   { l.Log.Error().Msg(fmt.Sprint(v...)) }
func (l *Logger) Errorf(format string, v ...any)   { l.Log.Error().Msgf(format, v...) }

// infoLevel returns the level of a message that raft logs as information. With asynchronous
// writes to storage, raft receives the acknowledgement of an entry more than once in normal
// operation, and each time it logs that it ignores this.
func infoLevel(format string) zerolog.Level {
	if strings.HasSuffix(format, "; ignoring") {
		return zerolog.DebugLevel
	}
	return zerolog.InfoLevel
}

// Fatal is called when an invariant of raft is broken. It panics, so that the core reboots.
func (l *Logger) Fatal(v ...any)                 { panic(fmt.Sprint(v...)) }
func (l *Logger) Fatalf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }
func (l *Logger) Panic(v ...any)                 { panic(fmt.Sprint(v...)) }
func (l *Logger) Panicf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }
