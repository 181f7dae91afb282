package actors

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	cmap "github.com/orcaman/concurrent-map"
	"github.com/rs/zerolog"
)

// At most deadLetterBurst dead letters are logged per deadLetterPeriod: one is enough to
// diagnose, and thousands would bury the rest of the log.
const (
	deadLetterBurst  = 3
	deadLetterPeriod = time.Second
)

// init makes the registry of processes smaller: protoactor-go has 1,024 maps in it,
// and each has 32 shards by default, together 2.9 MB before the first actor.
// The number is a variable of the process that must not change while a map exists.
func init() { cmap.SHARD_COUNT = 1 }

// NewSystem builds the actor system of a node: protoactor logs to logger, its metrics are
// disabled (they cost twenty times as much as a message), and dead letters are throttled.
func NewSystem(logger zerolog.Logger) *actor.ActorSystem {
	return actor.NewActorSystem(
		actor.WithLoggerFactory(func(*actor.ActorSystem) *slog.Logger { return NewSlog(logger) }),
		actor.WithDeadLetterThrottleCount(deadLetterBurst),
		actor.WithDeadLetterThrottleInterval(deadLetterPeriod),
		actor.WithDeadLetterRequestLogging(false),
	)
}

// NewSlog returns a slog front end for logger that suits protoactor. Its attribute "message"
// would collide with zerolog's key for the text and is renamed. Messages are logged by type
// only, because they hold user data, may be large, and belong to another actor.
func NewSlog(logger zerolog.Logger) *slog.Logger {
	return slog.New(bridge{zerolog.NewSlogHandler(logger)})
}

// bridge sanitizes attributes before it passes them to zerolog's own handler.
type bridge struct{ slog.Handler }

// Handle implements slog.Handler.
func (b bridge) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(harmless(a))
		return true
	})
	if err := b.Handler.Handle(ctx, clean); err != nil {
		return fmt.Errorf("actors: log: %w", err)
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (b bridge) WithAttrs(attrs []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clean[i] = harmless(a)
	}
	return bridge{b.Handler.WithAttrs(clean)}
}

// WithGroup implements slog.Handler.
func (b bridge) WithGroup(name string) slog.Handler {
	return bridge{b.Handler.WithGroup(name)}
}

func harmless(a slog.Attr) slog.Attr {
	if a.Key == zerolog.MessageFieldName {
		a.Key = "msg_type"
	}
	if a.Value.Kind() == slog.KindAny {
		a.Value = slog.StringValue(brief(a.Value.Any()))
	}
	return a
}

func brief(v any) string {
	switch v := v.(type) {
	case *actor.PID:
		if v == nil {
			return ""
		}
		return v.Id
	case error:
		return v.Error()
	case actor.Directive:
		return v.String()
	}
	return fmt.Sprintf("%T", v)
}
