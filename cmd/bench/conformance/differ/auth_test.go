package differ

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
)

// authSequence runs a seed with replies that let everything succeed.
func authSequence(seed uint64, steps int, signers []*signer, each func(Call)) {
	g := newAuthGenerator(seed, steps, newAuthMode(seed, signers, true))
	for {
		c, more := g.Next()
		if !more {
			return
		}
		each(c)
		reply := Reply{Message: &pb.PutResponse{Header: &pb.ResponseHeader{Revision: 100}}}
		if c.Method == AuthStatus {
			reply.Message = &pb.AuthStatusResponse{AuthRevision: 40}
		}
		g.Observe(c, reply)
	}
}

func testSigners(t *testing.T) []*signer {
	t.Helper()
	signers, err := newSigners(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return signers
}

// Every call and every way to identify itself that the coverage table asks for is drawn.
func TestAuthGeneratorReachesEverything(t *testing.T) {
	seen, signers := make(Coverage), testSigners(t)
	for seed := range uint64(20) {
		authSequence(seed, 2000, signers, func(c Call) { seen.Add(c, Reply{}) })
	}
	for _, name := range wantedOfAuth(true) {
		if !strings.HasPrefix(name, "error ") && seen[name] == 0 {
			t.Errorf("never drawn: %s", name)
		}
	}
}

func TestAuthSequencesDependOnTheSeedAlone(t *testing.T) {
	signers := testSigners(t)
	record := func(seed uint64) (calls []string) {
		authSequence(seed, 500, signers, func(c Call) {
			wire, err := (proto.MarshalOptions{Deterministic: true}).Marshal(c.Request)
			if err != nil {
				t.Fatal(err)
			}
			calls = append(calls, string(c.Method)+c.caller()+string(wire))
		})
		return calls
	}
	for seed := range uint64(4) {
		if first := record(seed); len(first) < 500 || !slices.Equal(first, record(seed)) {
			t.Errorf("seed %d: got %d calls, and others the second time; want 500 or more, and the same", seed, len(first))
		}
	}
	if slices.Equal(record(4), record(5)) {
		t.Error("another seed gave the same calls")
	}
}

// In a signed token everything but the time is compared, and the time is checked.
func TestReadToken(t *testing.T) {
	now := time.Now()
	for _, s := range testSigners(t) {
		text := func(change func(claims)) string {
			c := claims{"username": "ann", "revision": 7, "exp": now.Add(jwtTTL).Unix()}
			change(c)
			got, err := readToken(token(s.method, c, s.sign), now)
			if err != nil {
				return "refused"
			}
			return got
		}
		want := text(func(claims) {})
		for name, tc := range map[string]struct {
			change func(claims)
			same   bool
		}{
			"some seconds ago": {func(c claims) { c["exp"] = now.Add(jwtTTL - 10*time.Second).Unix() }, true},
			"another user":     {func(c claims) { c["username"] = "bob" }, false},
			"another revision": {func(c claims) { c["revision"] = 8 }, false},
			"one claim more":   {func(c claims) { c["sub"] = "ann" }, false},
			"too long":         {func(c claims) { c["exp"] = now.Add(2 * jwtTTL).Unix() }, false},
			"too short":        {func(c claims) { c["exp"] = now.Add(jwtTTL / 2).Unix() }, false},
			"without an end":   {func(c claims) { delete(c, "exp") }, false},
		} {
			if got := text(tc.change); (got == want) != tc.same || want == "refused" {
				t.Errorf("%s, %s: got %s beside %s, want the same: %t", s.method, name, got, want, tc.same)
			}
		}
	}
	for _, bad := range []string{"", "a.b", "a.b.c", "e30.e30.", "!.!.!"} {
		if got, err := readToken(bad, now); err == nil {
			t.Errorf("%q: got %s, want an error", bad, got)
		}
	}
}

// Simple tokens that were not used for their TTL are refused by both servers; one that is used lasts.
func TestTokensExpire(t *testing.T) {
	t.Parallel()
	const ttl, step = 2 * time.Second, 200 * time.Millisecond
	flags := append([]string{"--bcrypt-cost=4", "--auth-token-ttl=2"}, fastElections...)
	left, err := begin(t.Context(), Side{Binary: server(t, "BENCH_DIFF_LEFT", tools.Etcd), Args: append([]string{"--unsafe-no-fsync"}, flags...)}, 1, t.TempDir(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = left.end() }() // the test removes the folder
	right, err := begin(t.Context(), Side{Binary: server(t, "BENCH_DIFF_RIGHT", tools.Troupe), Args: flags}, 1, t.TempDir(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = right.end() }()
	do := func(c Call, want codes.Code) {
		t.Helper()
		l, r := both(context.Background(), c, left, right)
		if l, r = normalise(left.identity(c), l), normalise(right.identity(c), r); !same(l, r) || l.Code != want {
			t.Fatalf("%s%s: got %s and %s, want the same, and code %v", c.Method, c.caller(), l, r, want)
		}
	}
	g := newAuthGenerator(1, 0, authMode{})
	for _, c := range g.queue {
		want := codes.OK
		if r, ok := c.Request.(*pb.AuthenticateRequest); ok && r.Name == "cy" {
			want = codes.Unknown // no password
		}
		if c.Method != RoleGrantPermission { // some of which are not valid
			do(c, want)
		}
	}
	use := func(user string) Call {
		return Call{Method: UserGet, User: user, Request: &pb.AuthUserGetRequest{Name: user}}
	}
	do(use("bob"), codes.OK)
	for idle := time.Duration(0); idle < 2*ttl+time.Second; idle += step {
		time.Sleep(step) // the time that is tested
		do(use("ann"), codes.OK)
	}
	do(use("bob"), codes.Unauthenticated)
	do(use("ann"), codes.OK)
}
