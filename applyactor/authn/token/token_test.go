package token

import (
	"fmt"
	"slices"
	"testing"
)

// use checks what the table says of tokens at a time: "token=user" for valid ones, "token" for
// others.
func use(t *testing.T, tab *Table, now int64, want ...string) {
	t.Helper()
	for _, w := range want {
		token, user := w, ""
		for i := range w {
			if w[i] == '=' {
				token, user = w[:i], w[i+1:]
			}
		}
		got, ok := tab.Use(token, now)
		if got != user || ok != (user != "") {
			t.Errorf("token %s at %d: got user %q, %t, want %q", token, now, got, ok, user)
		}
	}
}

// TestExpiry: a token expires when it was not used for the TTL; each use prolongs it.
func TestExpiry(t *testing.T) {
	tab := NewTable(10, 100)
	tab.Assign("a.1", "ann", 0)
	tab.Assign("b.1", "bob", 50)
	use(t, tab, 99, "a.1=ann")
	use(t, tab, 150, "a.1=ann", "b.1") // b was not used since 50
	use(t, tab, 249, "a.1=ann")
	use(t, tab, 349, "a.1")
	if tab.Len() != 0 || len(tab.users) != 0 {
		t.Errorf("got %d tokens of %d users when all have expired, want none", tab.Len(), len(tab.users))
	}
	tab.Assign("c.1", "ann", 400)
	tab.Expire(499)
	use(t, tab, 499, "c.1=ann")
	tab.Expire(599)
	if tab.Len() != 0 {
		t.Errorf("got %d tokens after Expire, want none", tab.Len())
	}
}

// TestRevoke: tokens of one user, and of all.
func TestRevoke(t *testing.T) {
	tab := NewTable(10, 100)
	for _, token := range []string{"a.1", "a.2"} {
		tab.Assign(token, "ann", 0)
	}
	tab.Assign("b.1", "bob", 0)
	tab.Revoke("nobody")
	tab.Revoke("ann")
	use(t, tab, 1, "a.1", "a.2", "b.1=bob")
	tab.Revoke("")
	use(t, tab, 1, "b.1")
	if tab.Len() != 0 || len(tab.users) != 0 || tab.order.Len() != 0 {
		t.Errorf("got %d tokens of %d users in an order of %d, want none", tab.Len(), len(tab.users), tab.order.Len())
	}
}

// TestMax: above the limit, the token that was not used for the longest time is dropped.
func TestMax(t *testing.T) {
	tab := NewTable(3, 1000)
	for i := range 3 {
		tab.Assign(fmt.Sprint(i), "ann", int64(i))
	}
	use(t, tab, 10, "0=ann")
	tab.Assign("3", "bob", 11)
	use(t, tab, 12, "1", "0=ann", "2=ann", "3=bob")
	if tab.Len() != 3 || tab.Evicted() != 1 {
		t.Errorf("got %d tokens and %d dropped, want 3 and 1", tab.Len(), tab.Evicted())
	}
}

// TestReplay: entries that are applied again after a reboot of the core change nothing, so a token
// that was revoked does not return; after a snapshot, which replaces entries that may have revoked
// tokens, all are gone.
func TestReplay(t *testing.T) {
	tab := NewTable(10, 1000)
	assign := func(index uint64, token string) {
		tab.Apply(index, func() { tab.Assign(token, "ann", 0) })
	}
	tab.Begin(0)
	assign(5, "a.5")
	tab.Apply(6, func() { tab.Revoke("ann") })
	assign(7, "a.7")
	tab.Apply(9, func() {}) // entries without a change
	tab.Begin(4)            // the store had up to 4
	assign(5, "a.5")
	use(t, tab, 1, "a.5", "a.7=ann")
	tab.Begin(9)
	use(t, tab, 1, "a.7=ann")
	tab.Begin(10) // the member has never applied 10
	use(t, tab, 1, "a.7")
	assign(9, "a.9")
	use(t, tab, 1, "a.9")
	assign(11, "a.11")
	use(t, tab, 1, "a.11=ann")
}

func TestIndex(t *testing.T) {
	for token, want := range map[string]uint64{"abc.12": 12, "a.0": 0, "a.18446744073709551615": 1<<64 - 1} {
		if index, ok := Index(token); !ok || index != want {
			t.Errorf("%q: got %d, %t, want %d", token, index, ok, want)
		}
	}
	for _, token := range []string{"", "abc", ".5", "a.", "a.b", "a.-1", "a.+1", "a.1.2", "a.18446744073709551616"} {
		if index, ok := Index(token); ok {
			t.Errorf("%q: got %d, want none", token, index)
		}
	}
}

// FuzzIndex: whatever a client sends is a token or not, and no panic.
func FuzzIndex(f *testing.F) {
	f.Add("abc.12")
	f.Fuzz(func(t *testing.T, token string) {
		if index, ok := Index(token); ok && index == 0 && token[len(token)-1] != '0' {
			t.Errorf("%q has the index 0", token)
		}
	})
}

// modelTable has the tokens of a table, the one whose last use is the oldest first.
type modelTable []entry

func (m modelTable) without(drop func(entry) bool) modelTable {
	return slices.DeleteFunc(slices.Clone(m), drop)
}

// FuzzTable: the table agrees with a model, whatever is assigned, used and revoked.
func FuzzTable(f *testing.F) {
	f.Add([]byte("\x00a\x01\x01b\x02\x02a\x30\x03a\x00\x00c\x01\x00d\x01\x00e\x01"))
	f.Add([]byte("\x00a\x01\x00a\x02\x02a\x00\x04a\x00\x01a\x09\x02a\x08"))
	f.Fuzz(func(t *testing.T, data []byte) {
		const most, ttl = 3, 20
		tab, m, now := NewTable(most, ttl), modelTable{}, int64(0)
		for ; len(data) >= 3; data = data[3:] {
			token, user := string(data[1]%8+'a'), string(data[1]%2+'x')
			now += int64(data[2] % 16)
			expired := func(e entry) bool { return now-e.used >= ttl }
			same := func(e entry) bool { return e.token == token }
			switch data[0] % 5 {
			case 0, 1:
				tab.Assign(token, user, now)
				m = m.without(expired).without(same)
				if len(m) == most {
					m = m[1:]
				}
				m = append(m, entry{token, user, now})
			case 2:
				got, ok := tab.Use(token, now)
				i := slices.IndexFunc(m, same)
				want := i >= 0 && !expired(m[i])
				if ok != want || ok && got != m[i].user {
					t.Fatalf("at %d: use of %s: got %q, %t, want %v of %v", now, token, got, ok, want, m)
				}
				if m = m.without(same); ok {
					m = append(m, entry{token, got, now})
				}
			case 3:
				tab.Revoke(user)
				m = m.without(func(e entry) bool { return e.user == user })
			case 4:
				tab.Expire(now)
				m = m.without(expired)
			}
			if tab.Len() != len(m) || tab.order.Len() != len(m) || len(m) > most {
				t.Fatalf("at %d: got %d tokens, %d in order, want %v", now, tab.Len(), tab.order.Len(), m)
			}
			held := 0
			for _, tokens := range tab.users {
				held += len(tokens)
			}
			if held != len(m) {
				t.Fatalf("at %d: users have %d tokens, want %d", now, held, len(m))
			}
		}
	})
}
