package ledger

import "testing"

func TestBalance(t *testing.T) {
	w := NewWriter("w")
	if got := w.Last(); got != nil {
		t.Errorf("got %q as the last acknowledged key before the first", got)
	}
	for range 6 {
		n, _ := w.Next()
		if n < 4 {
			w.Acknowledge(n)
		}
	}
	right := stored{version: 1, right: true}
	store := map[string]stored{
		string(w.key(0)): right,
		string(w.key(1)): {version: 2, right: true},
		string(w.key(2)): {version: 1},
		// Write 3 was acknowledged and is lost. Write 4 was not and is there; 5 neither.
		string(w.key(4)): right,
		"other":          right,
	}
	if got, want := balance(store, []*Writer{w}), (Balance{Acknowledged: 4, Lost: 1, Twice: 1, Wrong: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := string(w.Last()); got != "w00000003" {
		t.Errorf("got %s as the last acknowledged key, want w00000003", got)
	}
}

func TestRequestsDiffer(t *testing.T) {
	w := NewWriter("w")
	_, first := w.Next()
	_, second := w.Next()
	if string(first.Key) == string(second.Key) || string(first.Value) == string(second.Value) || len(first.Value) != valueBytes {
		t.Errorf("got %v and %v, want different keys and values of %d bytes", first, second, valueBytes)
	}
}
