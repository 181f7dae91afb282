package servers

import (
	"slices"
	"strings"
	"testing"
)

func TestListTakesPaths(t *testing.T) {
	got, err := List(t.Context(), "/x/one,/y/two")
	if err != nil || len(got) != 2 || got[0].Name != "one" || got[0].Binary != "/x/one" || got[1].Name != "two" || !got[1].Judged() {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestPair(t *testing.T) {
	got, err := Pair(t.Context(), "troupe", "/x/other")
	if err != nil || len(got) != 1 || got[0].Name != "troupe" || got[0].Binary != "/x/other" {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := Pair(t.Context(), "zookeeper", ""); err == nil || !strings.Contains(err.Error(), "zookeeper") {
		t.Errorf("got %+v, %v; want an error that names the server", got, err)
	}
}

func TestEtcdIsNotJudged(t *testing.T) {
	if (Server{Name: "etcd"}).Judged() || !(Server{Name: "troupe"}).Judged() {
		t.Error("want all but etcd judged")
	}
}

// Start does not change the server's own flags.
func TestStartArguments(t *testing.T) {
	s := Server{Name: "none", Binary: "/nonexistent", Args: slices.Grow([]string{"--own"}, 4)}
	if _, err := s.Start(t.Context(), t.TempDir(), "--more"); err == nil {
		t.Error("want an error for a binary that does not exist")
	}
	if got := s.Args[:2:2]; got[1] != "" {
		t.Errorf("got %q appended to the server's own flags, want nothing", got[1])
	}
}
