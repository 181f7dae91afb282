package token

import (
	"fmt"
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
