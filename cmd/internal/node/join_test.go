package node

import (
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// TestJoinCreatesNoCluster: only a member of a new cluster writes its members into an empty log.
func TestJoinCreatesNoCluster(t *testing.T) {
	for join, want := range map[bool]int{false: 2, true: 0} {
		n := &Node{cfg: Config{Join: join, Members: []*applymsg.Member{{Id: 1}, {Id: 2}}, Heartbeat: time.Second, Election: 5 * time.Second}}
		if got := len(n.coreConfig(core.Identity{}).Members); got != want {
			t.Errorf("join %v: got %d members, want %d", join, got, want)
		}
	}
}
