package grpcgw

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestEarlyCollection: the collector runs early from the first large answer until some time
// after the last one, and then as before.
func TestEarlyCollection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		percent, set := 100, []int(nil)
		e := earlyCollection{set: func(p int) int {
			before := percent
			percent, set = p, append(set, p)
			return before
		}}
		want := func(when string, percents ...int) {
			t.Helper()
			synctest.Wait()
			if !slices.Equal(set, percents) {
				t.Errorf("%s: set %v, want %v", when, set, percents)
			}
		}
		e.hold(earlyBytes - 1)()
		want("after a small answer")
		first, second := e.hold(earlyBytes), e.hold(earlyBytes)
		want("with large answers", earlyPercent)
		first()
		time.Sleep(time.Hour)
		want("with one of them", earlyPercent)
		second()
		time.Sleep(earlyFor - 1)
		want("soon after the last", earlyPercent)
		time.Sleep(earlyFor + 1)
		want("later", earlyPercent, 100)
		e.hold(earlyBytes)()
		time.Sleep(3 * earlyFor)
		want("after another one", earlyPercent, 100, earlyPercent, 100)
	})
}
