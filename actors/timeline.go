package actors

import (
	"fmt"
	"sync"
)

// The stages that a raft entry passes, as Timeline numbers them.
const (
	TimelineProposer = iota
	TimelineRaft
	TimelineWAL
	TimelineApply
	TimelineMVCC
	timelineStages
)

// TimelineStage returns the path of the actor of a Timeline constant.
func TimelineStage(stage int) string {
	names := [timelineStages]string{CoreProposer, CoreRaft, CoreWAL, CoreApply, CoreMVCC}
	return names[stage]
}

// timelineSlots is the number of recent raft entries that are kept: four seconds at 1,000
// entries a second, well above the duration of a slow request. About 750 KB. It is a power of
// two, so that the slot of an index is a mask.
const timelineSlots = 4096

// StageTime records when one stage handled an entry. All times are readings of Now.
type StageTime struct {
	Stage    int   // a Timeline constant
	Enqueued int64 // the message was queued in the stage's mailbox
	Started  int64 // its batch was drained
	Ended    int64 // the stage had handled it
}

// Timeline records when each stage handled each recent raft entry. An entry carries a whole
// batch of requests, so the cost per request is small. The log of slow requests uses it to
// show the time spent in each stage.
//
// Each slot has its own lock, held for a few stores. Stages contend for it only when they
// handle the same entry at the same instant.
type Timeline struct {
	slots [timelineSlots]timelineSlot
}

type timelineSlot struct {
	mu    sync.Mutex
	index uint64 // raft index of the entry; 0 when never used
	seen  uint32 // bit per stage
	times [timelineStages]StageTime
}

// NewTimeline returns an empty timeline.
func NewTimeline() *Timeline { return new(Timeline) }

// Note records a stage's times for the entry at index (from 1). An entry overwrites the one
// 4096 before it; a note for an overwritten entry is ignored.
func (t *Timeline) Note(stage int, index uint64, enqueued, started, ended int64) {
	if !statistics {
		return
	}
	if stage < 0 || stage >= timelineStages || index == 0 {
		panic(fmt.Sprintf("actors: timeline note for stage %d, index %d", stage, index))
	}
	s := &t.slots[index%timelineSlots]
	s.mu.Lock()
	defer s.mu.Unlock()
	if index < s.index {
		return
	}
	if index > s.index {
		s.index, s.seen = index, 0
	}
	s.seen |= 1 << stage
	s.times[stage] = StageTime{stage, enqueued, started, ended}
}

// Read returns the recorded stages of an entry in pipeline order. It returns false if nothing
// was recorded for the entry, or it has been overwritten.
func (t *Timeline) Read(index uint64) ([]StageTime, bool) {
	s := &t.slots[index%timelineSlots]
	s.mu.Lock()
	defer s.mu.Unlock()
	if index == 0 || s.index != index {
		return nil, false
	}
	times := make([]StageTime, 0, timelineStages)
	for i := range s.times {
		if s.seen&(1<<i) != 0 {
			times = append(times, s.times[i])
		}
	}
	return times, true
}
