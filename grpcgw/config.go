package grpcgw

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/rs/zerolog"
)

// Defaults of etcd.
const (
	DefaultMaxRequestBytes   = 3 << 19 // 1.5 MiB
	DefaultMaxTxnOps         = 128
	DefaultQuotaBytes        = 2 << 30
	DefaultKeepaliveMinTime  = 5 * time.Second
	DefaultKeepaliveInterval = 2 * time.Hour
	DefaultKeepaliveTimeout  = 20 * time.Second
	DefaultSlowRequest       = 300 * time.Millisecond
	DefaultWatchProgress     = 10 * time.Minute
	// DefaultReadWait is how long a large read waits for its turn: etcd's timeout of
	// requests with the default election timeout.
	DefaultReadWait = 7 * time.Second
)

// Config is what a Gateway needs. Member and Logger are required; DefaultConfig
// fills in the rest.
type Config struct {
	Member Member
	// HTTP answers what is not gRPC; nil answers 404 to all.
	HTTP http.Handler
	// Observer counts what passes; nil for none.
	Observer Observer
	Logger   zerolog.Logger

	// MaxRequestBytes bounds a write as it is proposed. gRPC accepts messages of
	// 512 KiB more. Bytes.
	MaxRequestBytes int
	// Reads bounds the reads; nil makes one with DefaultReads.
	Reads *Reads
	// MaxTxnOps bounds the compares, and the operations of each branch, of a txn.
	MaxTxnOps int
	// MaxConcurrentStreams bounds the RPCs of one connection at a time.
	MaxConcurrentStreams uint32
	// MaxConnections returns how many client connections may be open, given how many
	// are: it is asked for each new one, under a lock, and must not block. Those
	// beyond are refused. Of the last ones only HTTP is served, not gRPC. Nil is no
	// limit.
	MaxConnections func(open int) int
	// QuotaBytes bounds the keyspace: a put beyond it raises NOSPACE. Zero means
	// the default, below zero means no quota.
	QuotaBytes int64
	// MinLeaseTTL is the shortest time of a lease in seconds.
	MinLeaseTTL int64
	// SlowRequest is the duration from which a unary request is logged; 0 logs none.
	SlowRequest time.Duration
	// WatchProgress is how often idle watchers are told of progress that ask for
	// it; 0 means the default.
	WatchProgress time.Duration
	// Election is the election timeout: streams that require a leader are cancelled
	// when there was none for three of them; 0 never cancels.
	Election time.Duration

	// KeepaliveMinTime is the shortest time between pings that a client may send;
	// 0 leaves gRPC's own of five minutes.
	KeepaliveMinTime time.Duration
	// KeepaliveInterval is how often an idle client is pinged, and KeepaliveTimeout
	// how long its answer may take. Either being 0 leaves gRPC's own.
	KeepaliveInterval time.Duration
	KeepaliveTimeout  time.Duration
}

// DefaultConfig returns etcd's settings, without a Member.
func DefaultConfig() Config {
	return Config{
		Logger:               zerolog.Nop(),
		MaxRequestBytes:      DefaultMaxRequestBytes,
		MaxTxnOps:            DefaultMaxTxnOps,
		MaxConcurrentStreams: math.MaxUint32,
		QuotaBytes:           DefaultQuotaBytes,
		SlowRequest:          DefaultSlowRequest,
		WatchProgress:        DefaultWatchProgress,
		KeepaliveMinTime:     DefaultKeepaliveMinTime,
		KeepaliveInterval:    DefaultKeepaliveInterval,
		KeepaliveTimeout:     DefaultKeepaliveTimeout,
	}
}

// errConfig is wrapped by every complaint about a Config.
var errConfig = errors.New("grpcgw: bad configuration")

// Validate names the first setting that cannot work.
func (c *Config) Validate() error {
	switch {
	case c.Member == nil:
		return fmt.Errorf("%w: no member", errConfig)
	case c.MaxRequestBytes <= 0 || c.MaxRequestBytes > math.MaxInt32-grpcOverheadBytes:
		return fmt.Errorf("%w: max request bytes %d", errConfig, c.MaxRequestBytes)
	case c.MaxTxnOps <= 0:
		return fmt.Errorf("%w: max txn ops %d", errConfig, c.MaxTxnOps)
	case c.MaxConcurrentStreams == 0:
		return fmt.Errorf("%w: max concurrent streams 0", errConfig)
	case c.SlowRequest < 0 || c.WatchProgress < 0 || c.Election < 0 || c.KeepaliveMinTime < 0 || c.KeepaliveInterval < 0 || c.KeepaliveTimeout < 0:
		return fmt.Errorf("%w: negative duration", errConfig)
	}
	return nil
}

func (c *Config) complete() {
	if c.QuotaBytes == 0 {
		c.QuotaBytes = DefaultQuotaBytes
	}
	if c.WatchProgress == 0 {
		c.WatchProgress = DefaultWatchProgress
	}
	if c.Reads == nil {
		c.Reads = NewReads(DefaultReads, DefaultReadWait)
	}
	if c.Observer == nil {
		c.Observer = blind{}
	}
	if c.HTTP == nil {
		c.HTTP = http.NotFoundHandler()
	}
}
