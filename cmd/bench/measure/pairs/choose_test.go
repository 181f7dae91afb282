package pairs

import (
	"testing"

	"github.com/troupe-db/troupe/cmd/bench/measure/loadtool"
)

func TestChooseLoads(t *testing.T) {
	own, err := DefaultLoad(WatchLatencyLoad)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ChooseLoads("put,watch-latency", Load{Total: 7, Watchers: loadtool.Watchers{PerStream: 3}})
	if err != nil || len(got) != 2 || got[0].Name != PutLoad || got[0].Total != 7 || got[0].Clients == 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	want := own
	want.Total, want.Watchers.PerStream = 7, 3
	if got[1] != want {
		t.Errorf("%+v, want %+v", got[1], want)
	}
	if _, err := ChooseLoads("put,sing", Load{}); err == nil {
		t.Error("unknown load accepted")
	}
}
