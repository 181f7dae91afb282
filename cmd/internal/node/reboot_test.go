package node

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/actors"
)

// TestReboot: a panic in any stage reboots the core from disk. What was
// acknowledged is there, and the member goes on.
func TestReboot(t *testing.T) {
	points := map[string][]string{
		actors.CoreProposer:  {"entry", "batch"},
		actors.CoreRaft:      {"entry", "batch"},
		actors.CoreWAL:       {"entry", "batch"},
		actors.CoreApply:     {"entry", "batch"},
		actors.CoreMVCC:      {"entry", "request", "publish", "batch"},
		actors.CorePersister: {"entry", "batch"},
	}
	for stage, names := range points {
		t.Run(strings.TrimPrefix(stage, "core/"), func(t *testing.T) {
			t.Parallel()
			m := startMember(t, t.TempDir(), nil)
			defer m.shut()
			acked := map[string]string{}
			n := 0
			write := func() {
				key, value := fmt.Sprintf("k%d", n%7), fmt.Sprint(n)
				n++
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				if _, err := m.client.Put(ctx, key, value); err == nil {
					acked[key] = value
				} else {
					delete(acked, key) // it may or may not have happened
				}
			}
			for i, point := range names {
				for range 20 {
					write()
				}
				m.Faults().Arm(stage, point, 2)
				for m.core.Restarts() <= i {
					write()
				}
				write()
				for key, value := range acked {
					if got := m.get(key); got != value {
						t.Fatalf("after a panic at %s: %s is %q, acknowledged was %q", point, key, got, value)
					}
				}
			}
		})
	}
}
