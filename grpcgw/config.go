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
	// DefaultReadWait is how long a large read waits for its turn that has no deadline.
	DefaultReadWait = time.Minute
)

// Config configures a Gateway. Member and Logger are required; DefaultConfig fills
// in the rest.
type Config struct {
	Member Member
	// HTTP serves requests that are not gRPC; nil answers all of them with 404.
	HTTP http.Handler
	// Metrics counts RPCs, messages and connections; nil exports nothing.
	Metrics *Metrics
	Logger  zerolog.Logger

	// Reconfig changes the members of the cluster; nil refuses to.
	Reconfig *Reconfig
	Auth     AuthConfig

	// MaxRequestBytes bounds the encoded size of a write, in bytes. gRPC accepts
	// messages of 512 KiB more.
	MaxRequestBytes int
	// Reads bounds the reads; nil makes one with DefaultReads.
	Reads *Reads
	// MaxTxnOps bounds the compares, and the operations of each branch, of a txn.
	MaxTxnOps int
	// MaxConcurrentStreams bounds the concurrent RPCs of one connection.
	MaxConcurrentStreams uint32
	// MaxConnections returns how many client connections may be open, given how many
	// are open. It is called for each new connection with a lock held, and must not
	// block. Connections beyond the limit are refused; gRPC is refused 32 below it,
	// so that plain HTTP is always served. Nil is no limit.
	MaxConnections func(open int) int
	// QuotaBytes bounds the keyspace: a put beyond it raises NOSPACE. Zero means
	// the default, below zero means no quota.
	QuotaBytes int64
	// MinLeaseTTL is the shortest TTL of a lease in seconds.
	MinLeaseTTL int64
	// SlowRequest is the duration above which a unary request is logged; 0 logs none.
	SlowRequest time.Duration
	// WatchProgress is the interval of progress notifications to idle watchers that
	// requested them; 0 means the default.
	WatchProgress time.Duration
	// Election is the election timeout. Streams that require a leader are cancelled
	// after three of them without a leader; 0 never cancels.
	Election time.Duration

	// KeepaliveMinTime is the shortest interval at which a client may send pings; 0
	// is gRPC's default of five minutes.
	KeepaliveMinTime time.Duration
	// An idle client is pinged every KeepaliveInterval, and its connection is closed
	// if it does not answer within KeepaliveTimeout. If either is 0, both are gRPC's
	// defaults.
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

// errConfig is wrapped by the errors of Validate.
var errConfig = errors.New("grpcgw: bad configuration")

// Validate returns an error that names the first invalid setting.
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
	if c.Metrics == nil {
		c.Metrics = NewMetrics(MetricsConfig{})
	}
	if c.HTTP == nil {
		c.HTTP = http.NotFoundHandler()
	}
}
