// Package token is the table of simple tokens that a member has in memory.
//
// Each member fills its table from the log: a token is assigned and revoked by entries, so all
// members know the same ones. Only the time since its last use differs, which each member counts
// by itself. The table has no clock; times are nanoseconds of any monotonic clock.
//
//	Begin   an incarnation of the core starts at an applied index
//	Assign  an entry has assigned a token
//	Revoke  an entry has revoked the tokens of a user, or all
//	Use     a client presents a token
package token

import (
	"container/list"
	"strconv"
	"strings"
)

// Table maps tokens to users. It is not safe for concurrent use.
type Table struct {
	max int
	ttl int64
	// applied is the index of the last entry whose changes the table has. Entries up to it are
	// skipped when they are applied again after a reboot of the core: a token that one of them
	// assigned may have been revoked by a later one.
	applied uint64
	tokens  map[string]*list.Element
	users   map[string]map[string]struct{} // the tokens of each user
	// order has the tokens in the order of their last use, oldest first: that of expiry, since all
	// have the same TTL. Its values are *entry.
	order   *list.List
	evicted int64
}

type entry struct {
	token, user string
	used        int64 // time of the last use
}

// NewTable returns an empty table. A token expires when it was not used for ttl nanoseconds. If
// there are more than max tokens, the one that was not used for the longest time is dropped.
func NewTable(max int, ttl int64) *Table {
	t := &Table{max: max, ttl: ttl}
	t.clear()
	return t
}

func (t *Table) clear() {
	t.tokens, t.users, t.order = map[string]*list.Element{}, map[string]map[string]struct{}{}, list.New()
}

// Begin is called when an incarnation of the core starts, with the index that its store has
// applied. If that is beyond what the table has seen, a snapshot has replaced entries that may
// have revoked tokens: then all are dropped.
func (t *Table) Begin(applied uint64) {
	if applied > t.applied {
		t.clear()
		t.applied = applied
	}
}

// Apply calls change with the changes of an entry, unless the table has them.
func (t *Table) Apply(index uint64, change func()) {
	if index > t.applied {
		t.applied = index
		change()
	}
}

// Assign adds a token of a user.
func (t *Table) Assign(token, user string, now int64) {
	t.Expire(now)
	t.drop(t.tokens[token])
	if len(t.tokens) >= t.max {
		t.drop(t.order.Front())
		t.evicted++
	}
	t.tokens[token] = t.order.PushBack(&entry{token: token, user: user, used: now})
	if t.users[user] == nil {
		t.users[user] = map[string]struct{}{}
	}
	t.users[user][token] = struct{}{}
}

// Revoke drops the tokens of a user, or all tokens if user is empty.
func (t *Table) Revoke(user string) {
	if user == "" {
		t.clear()
		return
	}
	for token := range t.users[user] {
		t.drop(t.tokens[token])
	}
}

// Use returns the user of a token, and prolongs it; ok is false if there is no such token.
func (t *Table) Use(token string, now int64) (user string, ok bool) {
	e := t.tokens[token]
	if e == nil {
		return "", false
	}
	held := e.Value.(*entry)
	if now-held.used >= t.ttl {
		t.drop(e)
		return "", false
	}
	held.used = now
	t.order.MoveToBack(e)
	return held.user, true
}

// Expire drops the tokens that have expired.
func (t *Table) Expire(now int64) {
	for e := t.order.Front(); e != nil && now-e.Value.(*entry).used >= t.ttl; e = t.order.Front() {
		t.drop(e)
	}
}

// Len returns the number of tokens, those that have expired included.
func (t *Table) Len() int { return len(t.tokens) }

// Evicted returns how many tokens were dropped because there were too many.
func (t *Table) Evicted() int64 { return t.evicted }

func (t *Table) drop(e *list.Element) {
	if e == nil {
		return
	}
	held := t.order.Remove(e).(*entry)
	delete(t.tokens, held.token)
	if of := t.users[held.user]; len(of) > 1 {
		delete(of, held.token)
	} else {
		delete(t.users, held.user)
	}
}

// Index returns the index of the entry that assigned a token; ok is false if it is no token.
func Index(token string) (index uint64, ok bool) {
	prefix, number, ok := strings.Cut(token, ".")
	if !ok || prefix == "" {
		return 0, false
	}
	index, err := strconv.ParseUint(number, 10, 64)
	return index, err == nil
}
