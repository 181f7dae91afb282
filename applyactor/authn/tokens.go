package authn

import (
	"sync"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/applyactor/authn/token"
)

// TokensMax bounds the simple tokens of a cluster: at about 300 bytes each, 30 MB. Beyond it the
// one that was not used for the longest time is dropped; its client has to log in again.
const TokensMax = 100_000

// DefaultTokenTTL is how long a simple token is valid after its last use by default, as in etcd.
const DefaultTokenTTL = 300 * time.Second

// Tokens has the simple tokens that were issued. It outlives the incarnations of the core. It is
// safe for concurrent use.
type Tokens struct {
	mu    sync.Mutex
	table *token.Table
}

// NewTokens returns Tokens without any. A token expires when it was not used for ttl; zero or less
// is the default, as in etcd.
func NewTokens(ttl time.Duration) *Tokens {
	if ttl <= 0 {
		ttl = DefaultTokenTTL
	}
	return &Tokens{table: token.NewTable(TokensMax, int64(ttl))}
}

// Begin is called before an incarnation of the core starts; see token.Table.Begin.
func (t *Tokens) Begin(applied uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.table.Begin(applied)
}

// Apply makes the changes of an entry, which may be none.
func (t *Tokens) Apply(index uint64, changes []apply.Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.table.Apply(index, func() {
		for _, c := range changes {
			if c.Assigned != "" {
				t.table.Assign(c.Assigned, c.User, actors.Now())
			} else {
				t.table.Revoke(c.User)
			}
		}
	})
}

// Use returns the user of a token, and prolongs it; ok is false if there is no such token.
func (t *Tokens) Use(token string) (user string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.table.Use(token, actors.Now())
}

// stats returns the number of tokens, and how many were dropped because there were too many.
func (t *Tokens) stats() (tokens int, evicted int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.table.Expire(actors.Now())
	return t.table.Len(), t.table.Evicted()
}
