package crashtest

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// Sentinel errors of Round.Check.
var (
	// ErrLost means that the store lacks something that was acknowledged or read.
	ErrLost = errors.New("crashtest: lost")
	// ErrRevisions means that the revisions do not match the writes one to one.
	ErrRevisions = errors.New("crashtest: revisions do not fit the writes")
	// ErrNotLinearizable means that no order of the calls explains the responses.
	ErrNotLinearizable = errors.New("crashtest: not linearizable")
	// ErrFloor means that no order of the compactions explains which reads succeeded.
	ErrFloor = errors.New("crashtest: compactions do not hold")
	// ErrUndecided means that porcupine did not finish in time. The models allow few
	// choices, so this is a bug in the models.
	ErrUndecided = errors.New("crashtest: the check took too long")
)

// checkTimeout bounds each run of porcupine, which should take milliseconds.
const checkTimeout = time.Minute

// Round is the record between two moments without pending calls, with the state at both.
type Round struct {
	Start, End *State
	// FloorBefore and Floor are the compact revisions at both moments; 0 before the
	// first compaction.
	FloorBefore, Floor int64
	// Revisions has the states by revision: all that could be read at End from the later
	// of Start and Floor on, and earlier ones that are known.
	Revisions map[int64]*State

	Operations []*Operation
	FloorCalls []*FloorCall

	// Foreign permits revisions that change none of the keys: other clients write other ones.
	Foreign bool
}

// Summary counts the calls of a round.
type Summary struct {
	Operations   int // reads and writes of the present
	Acknowledged int // of these, calls that succeeded
	Refused      int // of these, calls that were refused, and so not executed
	Unknown      int // of these, all others
	Took         int // of the unknown ones, calls that made a revision
	Revisions    int
	Foreign      int // of these, revisions that change none of the keys
	FloorCalls   int // compactions and reads of the past
}

// Add adds another round to the sum.
func (s *Summary) Add(o Summary) {
	s.Operations += o.Operations
	s.Acknowledged += o.Acknowledged
	s.Refused += o.Refused
	s.Unknown += o.Unknown
	s.Took += o.Took
	s.Revisions += o.Revisions
	s.Foreign += o.Foreign
	s.FloorCalls += o.FloorCalls
}

// Check returns an error if the round is not consistent.
//
// A call with an unknown outcome is resolved by the revisions that can still be read at
// End. If one of them has exactly the changes that the call would have made there, the
// call may have made it. If none has, the call is ignored. This is sound: an executed
// call that changed something made a revision, and all revisions are compared; a call
// that changed nothing and returned no response neither explains nor contradicts
// anything. If several calls could have made the same revision, which is possible only
// for deletions, porcupine determines which one did. Revisions below Floor can no longer
// be read: any unresolved call may have made those that no response claims, and again
// porcupine chooses.
func (r *Round) Check() (Summary, error) {
	c := checker{Round: r, claims: map[int64]*Operation{}, candidates: map[*Operation]map[int64]bool{}}
	for _, step := range []func() error{c.claim, c.resolve, c.linearize, c.reads, c.floors} {
		if err := step(); err != nil {
			return Summary{}, err
		}
	}
	return c.summary(), nil
}

// checker is the state of Check.
type checker struct {
	*Round
	// claims has the acknowledged writes by the revision in their response.
	claims map[int64]*Operation
	// candidates has the revisions that a call without a response may have made. A call
	// without any is not in the map.
	candidates map[*Operation]map[int64]bool
	took       int // revisions made by calls without a response
	foreign    []int64
}

// claim collects the acknowledged writes and finds those that the store cannot have.
func (c *checker) claim() error {
	for _, o := range c.Operations {
		if o.Response == nil {
			continue
		}
		rev := o.revision()
		switch {
		case rev > c.End.Revision:
			return fmt.Errorf("%w: the newest revision is %d, but there was\n%v", ErrLost, c.End.Revision, o)
		case !wrote(o.Response):
			continue
		case rev <= c.Start.Revision:
			return fmt.Errorf("%w: a write began after revision %d and made an earlier one:\n%v", ErrRevisions, c.Start.Revision, o)
		case c.claims[rev] != nil:
			return fmt.Errorf("%w: revision %d was made twice:\n%v\n%v", ErrRevisions, rev, c.claims[rev], o)
		}
		c.claims[rev] = o
	}
	return nil
}

// resolve compares each revision with the write that made it.
func (c *checker) resolve() error {
	first := max(c.Start.Revision, c.Floor)
	unanswered := slices.DeleteFunc(slices.Clone(c.Operations), func(o *Operation) bool { return o.Response != nil || o.Refused })
	for rev := c.Start.Revision + 1; rev <= c.End.Revision; rev++ {
		if c.claims[rev] == nil {
			if c.isForeign(rev) {
				c.foreign = append(c.foreign, rev)
				continue
			}
			c.took++
		}
		var err error
		switch made := c.claims[rev]; {
		case rev > first && made != nil:
			err = c.compare(rev, made)
		case rev > first:
			err = c.attribute(rev, unanswered)
		case made == nil:
			for _, o := range unanswered {
				c.mayBe(o, rev)
			}
		}
		if err != nil {
			return err
		}
	}
	if last := c.Revisions[c.End.Revision]; last == nil || !last.Equal(c.End) {
		return fmt.Errorf("%w: the end read as a revision is %v", ErrRevisions, last)
	}
	return nil
}

// isForeign reports whether a revision changed none of the keys.
func (c *checker) isForeign(rev int64) bool {
	before, after := c.Revisions[rev-1], c.Revisions[rev]
	return c.Foreign && before != nil && after != nil && before.unlike(after) < 0
}

func (c *checker) mayBe(o *Operation, rev int64) {
	if c.candidates[o] == nil {
		c.candidates[o] = map[int64]bool{}
	}
	c.candidates[o][rev] = true
}

// compare compares an acknowledged write with the revision in its response.
func (c *checker) compare(rev int64, made *Operation) error {
	before, after := c.Revisions[rev-1], c.Revisions[rev]
	if before == nil || after == nil {
		return fmt.Errorf("%w: revision %d or the one before was not read", ErrRevisions, rev)
	}
	want, _ := before.Apply(made.Request)
	if diff := want.difference(after); diff != "" {
		return fmt.Errorf("%w: revision %d does not match\n%v\nwant and got: %s", ErrLost, rev, made, diff)
	}
	return nil
}

// attribute finds the calls that may have made a revision that no response claims.
func (c *checker) attribute(rev int64, unanswered []*Operation) error {
	before, after := c.Revisions[rev-1], c.Revisions[rev]
	if before == nil || after == nil {
		return fmt.Errorf("%w: revision %d or the one before was not read", ErrRevisions, rev)
	}
	found := false
	for _, o := range unanswered {
		if got, _ := before.Apply(o.Request); got.Equal(after) {
			c.mayBe(o, rev)
			found = true
		}
	}
	if !found {
		return fmt.Errorf("%w: revision %d matches no write; it differs from the previous one by\n%s",
			ErrRevisions, rev, (&State{Revision: rev, keys: before.keys}).difference(after))
	}
	return nil
}

// placed is the input of the model: an operation with its position.
type placed struct {
	*Operation
	// nth numbers the operations that changed nothing at the same revision, in order of
	// their calls.
	nth        int
	candidates map[int64]bool
	// at is the revision of the response; writes is set if the operation made it.
	at     int64
	writes bool
	// foreign means that at was made by a write that is not in the record; it changes nothing.
	foreign bool
}

// position is a state of the model: a state of the keyspace, and the number of
// operations so far that changed nothing there.
type position struct {
	*State
	seen int
}

// linearize searches for an order of the calls with porcupine.
//
// Each response has its revision, which the model requires. Only the order of calls that
// changed nothing at the same revision is open, and there the order in which they were
// made is sufficient: if they fit between two writes in any order, each as early as
// possible, they fit in that one. So the model accepts one call at a time, and the search
// branches only for calls without a response.
func (c *checker) linearize() error {
	history, seen := c.history()
	model := porcupine.Model{
		Init: func() any { return position{State: c.Start} },
		Step: func(state, input, _ any) (bool, any) {
			return c.step(state.(position), input.(*placed), seen)
		},
		Equal: func(a, b any) bool {
			x, y := a.(position), b.(position)
			return x.seen == y.seen && x.State.Equal(y.State)
		},
		Hash: func(state any) uint64 { return uint64(state.(position).Revision) },
	}
	switch porcupine.CheckOperationsTimeout(model, history, checkTimeout) {
	case porcupine.Ok:
		return nil
	case porcupine.Illegal:
		return fmt.Errorf("%w\n%s", ErrNotLinearizable, explain(model, history))
	}
	return ErrUndecided
}

// history lists the operations for porcupine. seen counts those that changed nothing, by
// revision.
func (c *checker) history() (history []porcupine.Operation, seen map[int64]int) {
	seen = map[int64]int{}
	ops := slices.SortedStableFunc(slices.Values(c.Operations), func(a, b *Operation) int { return cmp.Compare(a.Call, b.Call) })
	for _, o := range append(ops, c.finalRead()) {
		p := &placed{Operation: o, candidates: c.candidates[o]}
		switch {
		case o.Response == nil && p.candidates == nil:
			continue
		case o.Response != nil:
			p.at, p.writes = o.revision(), wrote(o.Response)
		}
		if o.Response != nil && !p.writes {
			p.nth = seen[p.at]
			seen[p.at]++
		}
		history = append(history, porcupine.Operation{ClientId: o.Client, Input: p, Call: o.Call, Return: o.Return})
	}
	for _, rev := range c.foreign {
		p := &placed{Operation: &Operation{Client: -1, Request: &pb.RequestOp{}}, at: rev, foreign: true}
		history = append(history, porcupine.Operation{ClientId: -1, Input: p, Call: math.MinInt64, Return: Never})
	}
	return history, seen
}

// finalRead is the read of End, after all calls with a response.
func (c *checker) finalRead() *Operation {
	last := int64(0)
	for _, o := range c.Operations {
		last = max(last, o.Call)
		if o.Response != nil {
			last = max(last, o.Return)
		}
	}
	o := &Operation{Client: -1, Request: everything(), Call: last + 1, Return: last + 2}
	_, o.Response = c.End.Apply(o.Request)
	return o
}

// everything returns a read of all keys.
func everything() *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}}}
}

func (c *checker) step(at position, o *placed, seen map[int64]int) (bool, position) {
	complete := at.seen == seen[at.Revision]
	switch {
	case o.foreign && complete && o.at == at.Revision+1:
		return true, position{State: &State{Revision: o.at, keys: at.keys}}
	case o.foreign:
		return false, at
	case o.Response == nil && complete && o.candidates[at.Revision+1]:
		if next, _ := at.Apply(o.Request); next.Revision > at.Revision {
			return true, position{State: next}
		}
		return false, at
	case o.Response == nil:
		return at.Revision == c.End.Revision, at // it was not executed
	case o.writes && (!complete || o.at != at.Revision+1), !o.writes && (o.nth != at.seen || o.at != at.Revision):
		return false, at // not possible here; the rest of the function is slower
	}
	next, resp := at.Apply(o.Request)
	if !proto.Equal(resp, o.Response) {
		return false, at
	}
	if o.writes {
		return true, position{State: next}
	}
	return true, position{State: at.State, seen: at.seen + 1}
}

// explainMax is the most calls in an explanation.
const explainMax = 8

// explain describes how far porcupine got, and the calls that should be next according
// to their responses: one of them does not fit or was too late.
func explain(model porcupine.Model, history []porcupine.Operation) string {
	_, info := porcupine.CheckOperationsVerbose(model, history, checkTimeout)
	var longest []int
	for _, partial := range info.PartialLinearizations()[0] {
		if len(partial) > len(longest) {
			longest = partial
		}
	}
	state, done := model.Init(), map[int]bool{}
	for _, i := range longest {
		done[i] = true
		_, state = model.Step(state, history[i].Input, nil)
	}
	at := state.(position)
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d calls are in order, up to revision %d. Next should be\n", len(longest), len(history), at.Revision)
	listed := 0
	for i, h := range history {
		o := h.Input.(*placed)
		if done[i] || listed == explainMax || o.foreign || o.Response != nil && o.at != at.Revision && !(o.writes && o.at == at.Revision+1) {
			continue
		}
		listed++
		_, want := at.Apply(o.Request)
		fmt.Fprintf(&b, "%v\n\tthe model answers %s\n", o, describeResponse(want))
	}
	until, first := int64(math.MaxInt64), -1
	for i, h := range history {
		if !done[i] && h.Return < until && !h.Input.(*placed).foreign {
			until, first = h.Return, i
		}
	}
	if first >= 0 {
		fmt.Fprintf(&b, "All that comes before this one should have been called before it returned:\n%v\n", history[first].Input)
	}
	return b.String()
}

// reads compares reads of the past with the states at their revisions.
func (c *checker) reads() error {
	for _, f := range c.FloorCalls {
		if f.Response == nil || c.Revisions[f.Revision] == nil {
			continue
		}
		_, resp := c.Revisions[f.Revision].Apply(&pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: f.Read}})
		want, got := resp.GetResponseRange(), f.Response
		same := want.Count == got.Count && len(want.Kvs) == len(got.Kvs)
		for i := 0; same && i < len(want.Kvs); i++ {
			same = proto.Equal(want.Kvs[i], got.Kvs[i])
		}
		if !same {
			return fmt.Errorf("%w: a read of %s at revision %d answered\n%s\nbut there was\n%s", ErrLost,
				describeRange(f.Read.Key, f.Read.RangeEnd), f.Revision, describeResponse(rangeOp(got)), describeResponse(rangeOp(want)))
		}
	}
	return nil
}

func rangeOp(r *pb.RangeResponse) *pb.ResponseOp {
	return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: r}}
}

// floors searches for an order of compactions and reads of the past with porcupine. It
// is separate from that of the other calls: these do not depend on the compact revision,
// and no client compacts at a future revision. A failed compaction can always be placed
// at the end.
func (c *checker) floors() error {
	model := porcupine.Model{
		Init: func() any { return c.FloorBefore },
		Step: func(state, input, _ any) (bool, any) {
			floor, f := state.(int64), input.(*FloorCall)
			switch {
			case f.Compact && f.Outcome == Done:
				return f.Revision > floor, f.Revision
			case f.Compact && f.Outcome == Compacted:
				return f.Revision <= floor, floor
			case f.Compact:
				return true, max(floor, f.Revision)
			}
			return (f.Outcome == Done) == (f.Revision >= floor), floor
		},
	}
	var history []porcupine.Operation
	for _, f := range c.FloorCalls {
		history = append(history, porcupine.Operation{Input: f, Call: f.Call, Return: f.Return})
	}
	switch porcupine.CheckOperationsTimeout(model, history, checkTimeout) {
	case porcupine.Ok:
		return nil
	case porcupine.Illegal:
		var b strings.Builder
		for _, f := range c.FloorCalls {
			fmt.Fprintf(&b, "compact %v, revision %d, at %d to %d: %v\n", f.Compact, f.Revision, f.Call, f.Return, f.Outcome)
		}
		return fmt.Errorf("%w; they began at %d:\n%s", ErrFloor, c.FloorBefore, b.String())
	}
	return ErrUndecided
}

func (c *checker) summary() Summary {
	s := Summary{Operations: len(c.Operations), Took: c.took, Revisions: int(c.End.Revision - c.Start.Revision), Foreign: len(c.foreign), FloorCalls: len(c.FloorCalls)}
	for _, o := range c.Operations {
		switch {
		case o.Response != nil:
			s.Acknowledged++
		case o.Refused:
			s.Refused++
		default:
			s.Unknown++
		}
	}
	return s
}
