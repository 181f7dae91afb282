package authn

import "github.com/prometheus/client_golang/prometheus"

// Collector exports what this package counts. It outlives reboots of the core.
type Collector struct {
	Passwords *Passwords
	Tokens    *Tokens
	// Revision returns the revision of the users and roles.
	Revision func() uint64
}

// Descriptions of what Collector reads.
var (
	descRevision = prometheus.NewDesc("etcd_debugging_auth_revision", "Revision of the users and roles.", nil, nil)
	descTokens   = prometheus.NewDesc("troupe_auth_tokens", "Simple tokens that are valid.", nil, nil)
	descEvicted  = prometheus.NewDesc("troupe_auth_tokens_evicted_total", "Simple tokens that were dropped because there were too many.", nil, nil)
	descChecks   = prometheus.NewDesc("troupe_auth_password_checks_total", "Passwords that were presented.", nil, nil)
	descCached   = prometheus.NewDesc("troupe_auth_password_cache_hits_total", "Passwords that were presented and had been right before.", nil, nil)
	descRefused  = prometheus.NewDesc("troupe_auth_password_refused_total", "Passwords that were not checked or hashed because too many waited.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRevision, descTokens, descEvicted, descChecks, descCached, descRefused} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c Collector) Collect(ch chan<- prometheus.Metric) {
	metric := func(d *prometheus.Desc, kind prometheus.ValueType, v float64) {
		ch <- prometheus.MustNewConstMetric(d, kind, v)
	}
	tokens, evicted := c.Tokens.stats()
	metric(descRevision, prometheus.GaugeValue, float64(c.Revision()))
	metric(descTokens, prometheus.GaugeValue, float64(tokens))
	metric(descEvicted, prometheus.CounterValue, float64(evicted))
	metric(descChecks, prometheus.CounterValue, float64(c.Passwords.checks.Load()))
	metric(descCached, prometheus.CounterValue, float64(c.Passwords.cached.Load()))
	metric(descRefused, prometheus.CounterValue, float64(c.Passwords.refused.Load()))
}
