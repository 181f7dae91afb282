package mvcc

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
)

// Loader reads an encoded pack from the store. The caller owns the returned bytes.
// Readers call it concurrently.
type Loader func(Revision) ([]byte, error)

// cache keeps pack contents in memory within a budget. Packs enter it when they are
// written and when a reader loads them; a second-chance clock evicts durable ones.
// The budget can be exceeded: a pack that is not durable cannot be evicted, and the
// persister bounds how many of those there are.
type cache struct {
	load    Loader
	corrupt func(*CorruptError) // may be nil
	budget  int64               // bytes

	resident atomic.Int64 // bytes
	misses   atomic.Int64

	mu    sync.Mutex
	ring  []*pack // evictable packs in memory, and some without content
	hand  int     // index in the ring of the next candidate
	empty int     // packs in the ring without content
}

// content returns the content of a pack, reading it from the store if needed, and
// whether that was needed. If keep is set, content that was read enters the cache.
// Scans of history do not set it: they would evict the packs of current versions.
func (c *cache) content(p *pack, keep bool) (b *body, loaded bool, err error) {
	if b := p.content.Load(); b != nil {
		if keep && !p.used.Load() {
			p.used.Store(true)
		}
		return b, false, nil
	}
	c.misses.Add(1)
	value, err := c.load(p.id)
	if err != nil {
		return nil, true, c.report(err)
	}
	if b, err = decodePack(value); err != nil {
		return nil, true, c.report(&CorruptError{Pack: p.id, Err: err})
	}
	if keep {
		c.keep(p, b)
	}
	return b, true, nil
}

// report returns err, after passing it to corrupt if it is damage.
func (c *cache) report(err error) error {
	var damage *CorruptError
	if c.corrupt != nil && errors.As(err, &damage) {
		c.corrupt(damage)
	}
	return err
}

// admit makes the content of a pack evictable. The pack has become durable.
func (c *cache) admit(p *pack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ring = append(c.ring, p)
	c.evict()
}

// keep caches content that a reader loaded. If the writer reclaimed records of the
// pack meanwhile, the content has more than needed, never less.
func (c *cache) keep(p *pack, b *body) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !p.content.CompareAndSwap(nil, b) {
		return
	}
	c.resident.Add(b.weight())
	c.ring = append(c.ring, p)
	c.evict()
}

// replace replaces the content of a reclaimed pack, if it is in memory, by the
// records that are left. If none are, it removes the content.
func (c *cache) replace(p *pack, b *body) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := p.content.Load()
	if old == nil {
		return
	}
	c.resident.Add(-old.weight())
	if b.len() > 0 {
		c.resident.Add(b.weight())
		p.content.Store(b)
		return
	}
	p.content.Store(nil)
	if c.empty++; c.empty*2 > len(c.ring) {
		c.sweep()
	}
}

// sweep removes packs without content from the ring. The caller holds mu.
func (c *cache) sweep() {
	c.ring = slices.DeleteFunc(c.ring, func(p *pack) bool { return p.content.Load() == nil })
	c.empty, c.hand = 0, 0
}

// evict removes packs until the cache is within its budget. The caller holds mu.
func (c *cache) evict() {
	for c.resident.Load() > c.budget && len(c.ring) > 0 {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		p := c.ring[c.hand]
		if p.used.Swap(false) {
			c.hand++
			continue
		}
		if b := p.content.Swap(nil); b != nil {
			c.resident.Add(-b.weight())
		} else {
			c.empty--
		}
		last := len(c.ring) - 1
		c.ring[c.hand] = c.ring[last]
		c.ring[last] = nil
		c.ring = c.ring[:last]
	}
}
