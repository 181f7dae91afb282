// Package ctl tests that real etcdctl prints the same for etcd and for Troupe. It leaves
// out what Troupe does not implement yet: snapshots and downgrades.
package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/cluster"
	"github.com/troupe-db/troupe/cmd/bench/internal/pki"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
)

// timeout is the most time for a command, or for the next line of its output.
const timeout = 20 * time.Second

// side is a server or a cluster and the state of its etcdctl commands.
type side struct {
	name    string
	cluster *cluster.Cluster
	via     []int             // the members whose endpoints commands get
	ctl     string            // etcdctl's executable
	vars    map[string]string // values of {name} in arguments
	ids     map[string]string // placeholders of ids, numbered in order of appearance
}

// pair has both sides.
type pair struct {
	*testing.T
	sides [2]*side
	// flags are those of every command, such as its user.
	flags []string
}

// with returns the same sides for a test, and for commands with flags.
func (p *pair) with(t *testing.T, flags ...string) *pair { return &pair{t, p.sides, flags} }

func newPair(t *testing.T) *pair {
	t.Helper()
	return startPair(t, 1, loneArgs, nil)
}

// loneArgs are the flags of a member that is alone. Short election timeouts make starts short.
// Progress notifications are sent every half second.
var loneArgs = []string{"--heartbeat-interval=10", "--election-timeout=100", "--watch-progress-notify-interval=500ms", "--bcrypt-cost=4"}

// startPair starts the members of both sides, with TLS if there are certificates.
func startPair(t *testing.T, members int, args []string, tls *pki.Files) *pair {
	t.Helper()
	ctl := benchtest.Program(t, tools.Etcdctl)
	p := &pair{T: t}
	for i, s := range []servers.Server{
		{Name: "etcd", Binary: benchtest.Program(t, tools.Etcd), Args: []string{"--unsafe-no-fsync"}},
		{Name: "troupe", Binary: benchtest.Program(t, tools.Troupe)},
	} {
		c, err := cluster.Start(t.Context(), cluster.Config{Server: s, Members: members, Args: args, Dir: t.TempDir(), TLS: tls})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() }) // the test removes the folder
		p.sides[i] = &side{name: s.Name, cluster: c, via: []int{0}, ctl: ctl, vars: map[string]string{}, ids: map[string]string{}}
	}
	return p
}

// endpoints lists the endpoints that commands get.
func (s *side) endpoints() string {
	var list []string
	for _, i := range s.via {
		endpoint := s.cluster.Members[i].Endpoint()
		if secure := s.cluster.Members[i].ClientURL(); strings.HasPrefix(secure, "https:") {
			endpoint = secure
		}
		list = append(list, endpoint)
	}
	return strings.Join(list, ",")
}

// command returns an etcdctl command for this side.
func (s *side) command(ctx context.Context, args []string) *exec.Cmd {
	full := []string{"--endpoints", s.endpoints()}
	for _, a := range args {
		for name, value := range s.vars {
			a = strings.ReplaceAll(a, "{"+name+"}", value)
		}
		full = append(full, a)
	}
	cmd := exec.CommandContext(ctx, s.ctl, full...)
	cmd.WaitDelay = time.Second // for processes that the command has started
	return cmd
}

var (
	// Ids of members, clusters and leases are random or derived from ports: hex in
	// text, decimal in JSON.
	idPattern = regexp.MustCompile(`\b(?:[0-9a-f]{12,16}|[0-9]{17,20})\b`)
	// The remaining time of a lease depends on timing.
	leftPattern = regexp.MustCompile(`granted with TTL\((\d+)s\), remaining\((\d+)s\)`)
	// The keys of a lease have no order in etcd.
	keysPattern = regexp.MustCompile(`(attached keys\(\[|"keys":\[)(.*?)\]`)
	// The number of elections and the sizes of the log and the store depend on timing.
	numberPattern = regexp.MustCompile(`("(?:raft_term|raftTerm|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse|ttl)"|"(?:RaftTerm|RaftIndex|DBSize)") ?: ?\d+`)
	// etcd reports nothing or 3.5.0 until a background task sets it.
	storagePattern = regexp.MustCompile(`"storageVersion":"3\.[57]\.0",`)
	tookPattern    = regexp.MustCompile(`took(?: =)? [0-9.]+(?:s|ms|µs|ns)`)
)

// normalise replaces the parts of an output that may differ.
func (s *side) normalise(text string) string {
	var addresses []string
	for i, m := range s.cluster.Members {
		addresses = append(addresses, m.Endpoint(), fmt.Sprint("ENDPOINT", i), m.Server.PeerURL(), fmt.Sprint("PEER", i))
	}
	text = strings.NewReplacer(addresses...).Replace(text)
	if len(s.cluster.Members) > 1 {
		text = arranged(text)
	}
	text = idPattern.ReplaceAllStringFunc(text, func(id string) string {
		if s.ids[id] == "" {
			s.ids[id] = fmt.Sprint("ID", len(s.ids))
		}
		return s.ids[id]
	})
	text = leftPattern.ReplaceAllStringFunc(text, func(m string) string {
		parts := leftPattern.FindStringSubmatch(m)
		ttl, left := atoi(parts[1]), atoi(parts[2])
		if left > ttl || left < ttl-10 {
			return m
		}
		return fmt.Sprintf("granted with TTL(%ds), remaining(NOT MUCH LESS)", ttl)
	})
	text = keysPattern.ReplaceAllStringFunc(text, func(m string) string {
		parts := keysPattern.FindStringSubmatch(m)
		keys := strings.FieldsFunc(parts[2], func(r rune) bool { return r == ' ' || r == ',' })
		slices.Sort(keys)
		return parts[1] + strings.Join(keys, " ") + "]"
	})
	text = numberPattern.ReplaceAllString(text, "$1:N")
	text = storagePattern.ReplaceAllString(text, "")
	text = tookPattern.ReplaceAllString(text, "took TIME")
	var lines []string
	for line := range strings.Lines(text) {
		// The client's own log has times and addresses. The number of progress
		// notifications depends on timing.
		if strings.HasPrefix(line, `{"level"`) || strings.HasPrefix(line, "progress notify:") && slices.Contains(lines, line) {
			continue
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "")
}

func atoi(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		panic(err) // it was matched by \d+
	}
	return n
}

// both calls do for both sides concurrently.
func (p *pair) both(do func(i int, s *side)) {
	var wg sync.WaitGroup
	for i, s := range p.sides {
		wg.Go(func() { do(i, s) })
	}
	wg.Wait()
}

// run runs a command on both sides, compares their output, and returns it.
func (p *pair) run(args ...string) string {
	p.Helper()
	return p.feed("", args...)
}

// feed is run with standard input.
func (p *pair) feed(stdin string, args ...string) string {
	p.Helper()
	var shown [2]string
	p.both(func(i int, s *side) {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		cmd := s.command(ctx, slices.Concat(p.flags, args))
		var stdout, stderr bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
		err := cmd.Run()
		shown[i] = s.show(stdout.String(), stderr.String(), err)
		if m := addedPattern.FindStringSubmatch(stdout.String()); m != nil {
			s.vars["added"] = m[1]
		}
		s.vars["lease"] = cmp(s.granted(stdout.String()), s.vars["lease"])
	})
	return p.compare(args, shown)
}

var addedPattern = regexp.MustCompile(`Member +([0-9a-f]+) added`)

var grantedPattern = regexp.MustCompile(`lease ([0-9a-f]+) granted`)

// granted returns the id of the lease that a command granted, or nothing.
func (s *side) granted(stdout string) string {
	if m := grantedPattern.FindStringSubmatch(stdout); m != nil && !strings.Contains(stdout, "remaining") {
		return m[1]
	}
	return ""
}

func cmp(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// show returns the normalised output and exit status of a command.
func (s *side) show(stdout, stderr string, err error) string {
	text := s.normalise(stdout)
	if e := s.normalise(stderr); e != "" {
		text += "stderr: " + e
	}
	if err != nil {
		text += fmt.Sprintln("exit:", err)
	}
	return text
}

func (p *pair) compare(args []string, shown [2]string) string {
	p.Helper()
	if shown[0] != shown[1] {
		p.Errorf("etcdctl %s\n--- etcd\n%s--- troupe\n%s", strings.Join(args, " "), shown[0], shown[1])
	}
	p.Logf("$ etcdctl %s\n%s", strings.Join(args, " "), shown[0])
	return shown[0]
}

// running is a command that runs on both sides until it is ended.
type running struct {
	p    *pair
	args []string
	on   [2]*process
}

// process is the command on one side.
type process struct {
	side           *side
	cmd            *exec.Cmd
	stdin          io.WriteCloser
	stdout, stderr output
	cancel         context.CancelFunc
}

// output is the output of a command so far.
type output struct {
	more chan struct{} // signaled by Write
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(b)
	select {
	case o.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

// String returns the output so far.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (p *pair) start(args ...string) *running {
	p.Helper()
	r := &running{p: p, args: args}
	for i, s := range p.sides {
		ctx, cancel := context.WithCancel(context.Background())
		one := &process{side: s, cmd: s.command(ctx, slices.Concat(p.flags, args)), cancel: cancel}
		one.stdout.more = make(chan struct{}, 1)
		one.cmd.Stdout, one.cmd.Stderr = &one.stdout, &one.stderr
		var err error
		if one.stdin, err = one.cmd.StdinPipe(); err == nil {
			err = one.cmd.Start()
		}
		if err != nil {
			p.Fatal(err)
		}
		p.Cleanup(cancel) // if the test fails before end
		r.on[i] = one
	}
	return r
}

// writeLine writes a line to the command.
func (r *running) writeLine(line string) {
	r.p.Helper()
	for _, one := range r.on {
		if _, err := io.WriteString(one.stdin, line+"\n"); err != nil {
			r.p.Fatal(err)
		}
	}
}

// awaitOutput waits until a text is in the output of both sides.
func (r *running) awaitOutput(text string) {
	r.p.Helper()
	for _, one := range r.on {
		for end := time.After(timeout); !strings.Contains(one.stdout.String(), text); {
			select {
			case <-one.stdout.more:
			case <-end:
				r.p.Fatalf("etcdctl %s on %s: got no %q, but\n%s%s", strings.Join(r.args, " "), one.side.name, text, one.stdout.String(), one.stderr.String())
			}
		}
	}
}

// noOutput checks that a text is not in the output of either side.
func (r *running) noOutput(text string) {
	r.p.Helper()
	for _, one := range r.on {
		if strings.Contains(one.stdout.String(), text) {
			r.p.Fatalf("etcdctl %s on %s: got %q too early", strings.Join(r.args, " "), one.side.name, text)
		}
	}
}

// interrupt ends the command with SIGINT and compares the output.
func (r *running) interrupt() string {
	r.p.Helper()
	return r.end(func(one *process) error { return one.cmd.Process.Signal(syscall.SIGINT) })
}

// closeInput closes the command's standard input and compares the output.
func (r *running) closeInput() string {
	r.p.Helper()
	return r.end(func(one *process) error { return one.stdin.Close() })
}

func (r *running) end(how func(*process) error) string {
	r.p.Helper()
	var shown [2]string
	for i, one := range r.on {
		if err := how(one); err != nil {
			r.p.Fatal(err)
		}
		kill := time.AfterFunc(timeout, one.cancel)
		err := one.cmd.Wait()
		kill.Stop()
		one.cancel()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			r.p.Fatal(err)
		}
		shown[i] = one.side.show(one.stdout.String(), one.stderr.String(), err)
	}
	return r.p.compare(r.args, shown)
}

// part is a part of the script.
type part struct {
	name string
	play func(*pair)
}

// parts are those without users, in their order.
var parts = []part{
	{"keys", keys}, {"transactions", transactions}, {"watch", watch}, {"watch interactively", watchInteractively},
	{"leases", leases}, {"locks", locks}, {"elections", elections}, {"mirror", mirror},
	{"compaction", compaction}, {"maintenance", maintenance},
}

// TestSame runs one script on both sides. Steps depend on the previous ones.
func TestSame(t *testing.T) {
	p := newPair(t)
	for _, part := range append(parts, part{"users", users}) {
		t.Run(part.name, func(t *testing.T) { part.play(p.with(t)) })
	}
}

func keys(p *pair) {
	p.run("get", "none", "-w", "json")
	p.run("put", "a", "1")
	p.run("put", "a", "2", "--prev-kv")
	p.run("put", "a1", "x", "-w", "json")
	p.feed("from stdin", "put", "a2")
	p.run("put", "a3", "3", "--prev-kv", "-w", "fields")
	p.run("put", "b", "")
	p.run("put", "none", "--ignore-value")
	p.run("put", "a", "--ignore-value", "--prev-kv")
	p.run("put", "a", "4", "--lease=1234abcd")
	p.run("put", "")
	for _, args := range [][]string{
		{"a"}, {"a", "a2"}, {"a", "--prefix"}, {"a", "--from-key"}, {"", "--prefix", "--keys-only"}, {"", "--from-key", "--count-only", "-w", "fields"},
		{"a", "--rev=2"}, {"a", "--rev=1000"}, {"a", "-w", "json"}, {"a", "-w", "fields"}, {"a", "--prefix", "-w", "table"},
		{"a", "--prefix", "--limit=2", "-w", "json"}, {"a", "--prefix", "--order=DESCEND", "--sort-by=MODIFY"}, {"a", "--prefix", "--sort-by=VALUE", "--print-value-only"},
		{"a", "--prefix", "--min-mod-rev=4", "--max-mod-rev=5"}, {"a", "--prefix", "--min-create-rev=5"}, {"a", "--prefix", "--consistency=s"},
		{"a", "--prefix", "--stream"}, {"a", "--prefix", "--hex"},
	} {
		p.run(append([]string{"get"}, args...)...)
	}
	p.run("del", "a3", "--prev-kv")
	p.run("del", "a1", "a2", "--range", "-w", "json")
	p.run("del", "none")
	p.run("del", "b", "--from-key")
	p.run("get", "", "--prefix", "-w", "json")
	p.run("endpoint", "hashkv")
	p.run("endpoint", "hashkv", "--rev=6", "-w", "json")
}

func transactions(p *pair) {
	p.run("put", "t", "1")
	p.feed("value(\"t\") = \"1\"\nmod(\"t\") > \"1\"\n\nput t 2\nget t\nput t2 x\n\nget none\n\n", "txn")
	p.feed("ver(\"t\") = \"1\"\n\nput t 3\n\nget t --prefix\ndel t2\n\n", "txn", "-w", "json")
	p.feed("create(\"t\") < \"1000\"\n\nget t\n\n\n", "txn", "-w", "fields")
	p.feed("\nput t 1\nput t 2\n\n\n", "txn")
	p.feed("nonsense\n", "txn")
	p.feed("value(\"t\") = \"2\"\n\nput t 4\n\n\n", "txn", "--interactive")
}

// watch receives past and new events.
func watch(p *pair) {
	p.run("put", "w1", "new") // the next events are at from and later
	from := p.revision() + 1
	rev := fmt.Sprint("--rev=", from)
	all := p.start("watch", "w", "--prefix", "--prev-kv", rev)
	asJSON := p.start("watch", "w", "--prefix", rev, "-w", "json")
	fields := p.start("watch", "w1", "w9", rev, "-w", "fields")
	single := p.start("watch", "w2", rev, "--", "sh", "-c", "echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE at $ETCD_WATCH_REVISION")
	for i, args := range [][]string{{"put", "w1", "1"}, {"put", "w2", "2"}, {"del", "w1"}, {"put", "w3", "3"}, {"put", "w2", "4"}, {"del", "w", "--prefix"}} {
		p.run(args...)
		// One after the other, so that no two events arrive in one response.
		asJSON.awaitOutput(fmt.Sprintf(`"mod_revision":%d`, from+i))
		fields.awaitOutput(fmt.Sprintf(`"ModRevision" : %d`, from+i))
		if i == 1 || i >= 4 {
			single.awaitOutput(fmt.Sprint("at ", from+i))
		}
	}
	// etcdctl prints an event in several writes: wait for the last one.
	all.awaitOutput("DELETE\nw3\n3\nw3\n\n")
	fields.awaitOutput(fmt.Sprintf("\"Key\" : \"w3\"\n\"CreateRevision\" : 0\n\"ModRevision\" : %d\n\"Version\" : 0\n\"Value\" : \"\"\n\"Lease\" : 0\n", from+5))
	for _, r := range []*running{all, asJSON, fields, single} {
		r.interrupt()
	}
	idle := p.start("watch", "idle", "--progress-notify")
	idle.awaitOutput(fmt.Sprint("progress notify: ", from+5))
	p.run("put", "idle", "no more")
	idle.awaitOutput("no more")
	idle.awaitOutput(fmt.Sprint("progress notify: ", from+6))
	idle.interrupt()
	p.run("watch")
	p.run("watch", "a", "b", "--prefix")
}

// revision is the newest revision, which is the same on both sides.
func (p *pair) revision() int {
	p.Helper()
	m := regexp.MustCompile(`"revision":(\d+)`).FindStringSubmatch(p.run("get", "none", "-w", "json"))
	if m == nil {
		p.Fatal("no revision in the answer")
	}
	return atoi(m[1])
}

func watchInteractively(p *pair) {
	next := p.revision() + 1
	w := p.start("watch", "-i")
	w.writeLine("nonsense")
	w.writeLine("watch")
	w.writeLine(fmt.Sprintf("watch i1 --rev=%d", next))
	w.writeLine(fmt.Sprintf("watch i --prefix --prev-kv --rev=%d", next+1))
	p.run("put", "i1", "one")
	w.awaitOutput("PUT\ni1\none\n")
	p.run("put", "i2", "two")
	w.awaitOutput("PUT\ni2\ntwo\n")
	w.writeLine("progress")
	w.awaitOutput(fmt.Sprint("progress notify: ", next+1))
	p.run("put", "i2", "three")
	w.awaitOutput("PUT\ni2\ntwo\ni2\nthree\n")
	w.closeInput()
}

func leases(p *pair) {
	p.run("lease", "grant", "100")
	p.run("lease", "grant", "200", "-w", "fields")
	p.run("lease", "list")
	for _, key := range []string{"l1", "l2", "l3"} {
		p.run("put", key, "x", "--lease={lease}")
	}
	p.run("put", "l3", "y", "--ignore-lease", "--prev-kv")
	p.run("put", "l2", "no lease")
	p.run("get", "l", "--prefix", "-w", "json")
	p.run("lease", "timetolive", "{lease}")
	p.run("lease", "timetolive", "{lease}", "--keys")
	p.run("lease", "timetolive", "{lease}", "--keys", "-w", "json")
	p.run("lease", "keep-alive", "{lease}", "--once")
	p.run("lease", "keep-alive", "{lease}", "--once", "-w", "json")
	p.run("lease", "revoke", "{lease}", "-w", "json")
	p.run("get", "l", "--prefix", "-w", "json")
	p.run("lease", "revoke", "{lease}")
	p.run("lease", "timetolive", "{lease}", "--keys")
	p.run("lease", "keep-alive", "{lease}", "--once")
	p.run("lease", "keep-alive", "{lease}")
	p.run("lease", "grant", "0")
	p.run("lease", "grant", "9000000001")
	p.run("lease", "grant", "long")
	p.run("lease", "revoke", "xyz")

	// A lease that is kept alive for a while.
	p.run("lease", "grant", "3")
	p.run("put", "kept", "x", "--lease={lease}")
	kept := p.start("lease", "keep-alive", "{lease}")
	gone := p.start("watch", "kept", "--prev-kv", fmt.Sprint("--rev=", p.revision()+1))
	kept.awaitOutput("keepalived with TTL(3)\n")
	gone.noOutput("DELETE")
	p.run("lease", "timetolive", "{lease}", "--keys")
	kept.interruptAny()
	gone.awaitOutput("DELETE\nkept\nx\nkept\n\n")
	gone.interrupt()
	p.run("lease", "timetolive", "{lease}", "--keys")
	p.run("get", "kept", "-w", "json")
}

// interruptAny ends a command whose output depends on the time of its end.
func (r *running) interruptAny() {
	r.p.Helper()
	for _, one := range r.on {
		_ = one.cmd.Process.Kill() // it has no other end
		_ = one.cmd.Wait()
		one.cancel()
	}
}

func locks(p *pair) {
	p.run("lock", "command", "--", "sh", "-c", "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV")
	p.run("lock", "command", "--", "sh", "-c", "exit 3")
	p.run("lock")
	holds := p.start("lock", "held")
	holds.awaitOutput("held/")
	waits := p.start("lock", "held", "--ttl=30", "echo", "second")
	p.waiting("held/", 2)
	waits.noOutput("second")
	holds.interrupt()
	waits.awaitOutput("second")
	waits.end(func(*process) error { return nil })
	p.run("get", "", "--prefix", "--keys-only")
}

// waiting waits until there is a number of keys with a prefix.
func (p *pair) waiting(prefix string, n int) {
	p.Helper()
	p.both(func(_ int, s *side) {
		for end := time.Now().Add(timeout); ; <-time.After(10 * time.Millisecond) {
			out, err := s.command(p.Context(), slices.Concat(p.flags, []string{"get", prefix, "--prefix", "--keys-only"})).Output()
			if err == nil && strings.Count(string(out), prefix) == n {
				return
			}
			if time.Now().After(end) {
				p.Errorf("%s: still no %d keys of %s: %s, %v", s.name, n, prefix, out, err)
				return
			}
		}
	})
}

func elections(p *pair) {
	listens := p.start("elect", "-l", "vote")
	first := p.start("elect", "vote", "first")
	first.awaitOutput("first")
	listens.awaitOutput("first")
	second := p.start("elect", "vote", "second")
	p.waiting("vote/", 2)
	second.noOutput("second")
	first.interrupt()
	second.awaitOutput("second")
	listens.awaitOutput("second")
	second.interrupt()
	listens.interrupt()
	p.run("elect", "vote")
	p.run("elect", "-l", "vote", "proposal")
}

// mirrorFlags are the flags of the pair for the destination of a mirror.
func (p *pair) mirrorFlags() (list []string) {
	for _, f := range p.flags {
		if name, ok := strings.CutPrefix(f, "--"); ok {
			f = "--dest-" + name
		}
		list = append(list, f)
	}
	if slices.Contains(p.flags, "--cacert") {
		list = append(list, "--dest-insecure-transport=false")
	}
	return list
}

// mirror copies a prefix to another one of the same server.
func mirror(p *pair) {
	p.run("put", "m/1", "one")
	p.run("put", "m/2", "two")
	for _, s := range p.sides {
		s.vars["endpoint"] = s.endpoints()
	}
	copies := p.start(slices.Concat([]string{"make-mirror", "--prefix=m/", "--dest-prefix=copy/", "{endpoint}"}, p.mirrorFlags())...)
	p.waiting("copy/", 2)
	p.run("put", "m/3", "three")
	p.waiting("copy/", 3)
	copies.interruptAny()
	p.run("get", "copy/", "--prefix")
}

func compaction(p *pair) {
	now := p.revision()
	p.run("compaction", fmt.Sprint(now-5)) // from here on no pair has a lease, whose id would be in the hash
	p.run("endpoint", "hashkv", fmt.Sprint("--rev=", now-3), "-w", "json")
	p.run("get", "a", fmt.Sprint("--rev=", now-6))
	p.run("get", "", "--prefix", fmt.Sprint("--rev=", now-5), "-w", "json")
	p.run("watch", "a", fmt.Sprint("--rev=", now-6))
	p.run("compaction", fmt.Sprint(now-5))
	p.run("compaction", fmt.Sprint(now+1))
	p.run("compaction", "--physical", fmt.Sprint(now))
	p.run("compaction", "x")
	p.run("compaction")
}

func maintenance(p *pair) {
	p.run("alarm", "list")
	p.run("alarm", "disarm")
	p.run("endpoint", "health")
	p.run("endpoint", "status", "-w", "json")
	p.run("endpoint", "hashkv")
	p.run("endpoint", "hashkv", "-w", "json")
	p.run("endpoint", "hashkv", fmt.Sprint("--rev=", p.revision()-1))
	p.run("member", "list")
	p.run("member", "list", "-w", "json")
	p.run("defrag")
	p.run("get", "", "--prefix", "-w", "json")
	p.run("version")
}

// users is the last part: it leaves authentication off, but the users there.
func users(p *pair) {
	p.run("auth", "status")
	p.run("auth", "status", "-w", "json")
	p.run("auth", "enable")
	p.run("user", "add", "root:pw")
	p.run("user", "add", "root:pw")
	p.run("user", "add", ":pw")
	p.run("user", "add", "ann:pw", "-w", "json")
	p.feed("pw2\n", "user", "add", "bob", "--interactive=false")
	p.run("user", "add", "cert", "--no-password")
	p.run("role", "add", "r")
	p.run("role", "add", "r")
	p.run("role", "add", "w", "-w", "json")
	p.run("role", "grant-permission", "r", "read", "a", "b")
	p.run("role", "grant-permission", "r", "readwrite", "c")
	p.run("role", "grant-permission", "r", "write", "d", "--prefix")
	p.run("role", "grant-permission", "r", "read", "x", "--from-key")
	p.run("role", "grant-permission", "r", "readwrite", "b", "a")
	p.run("role", "grant-permission", "none", "read", "a")
	p.run("role", "grant-permission", "r", "everything", "a")
	p.run("role", "get", "r")
	p.run("role", "get", "r", "-w", "json")
	p.run("role", "get", "none")
	p.run("role", "list")
	p.run("user", "grant-role", "ann", "r")
	p.run("user", "grant-role", "ann", "none")
	p.run("user", "grant-role", "none", "r")
	p.run("user", "get", "ann")
	p.run("user", "get", "ann", "--detail")
	p.run("user", "get", "none")
	p.run("user", "list", "-w", "json")
	p.run("auth", "enable")
	p.run("auth", "status")

	root, ann := "--user=root:pw", "--user=ann:pw"
	for _, user := range []string{"--user=ann:wrong", "--user=none:pw", "--user=cert:pw"} {
		p.run("put", "c", "1", user)
	}
	for _, user := range []string{"", root, ann} {
		// Without a list of leases: which of the earlier ones have expired depends on timing.
		for _, args := range [][]string{
			{"put", "c", "1"}, {"put", "d1", "1"}, {"put", "d1", "2", "--prev-kv"}, {"put", "e", "1"},
			{"get", "a", "b"}, {"get", "a", "--prefix"}, {"get", "c", "-w", "json"}, {"get", "x", "--from-key"}, {"get", "", "--prefix", "--keys-only"},
			{"del", "d1"}, {"del", "d", "--prefix", "--prev-kv"}, {"del", "e"},
			{"lease", "revoke", "1234abcd"}, {"lease", "timetolive", "1234abcd"},
			{"member", "list"}, {"member", "remove", "1234abcd"}, {"endpoint", "health"}, {"endpoint", "hashkv"},
			{"alarm", "list"}, {"alarm", "disarm"}, {"compact", "1"}, {"move-leader", "1234abcd"},
			{"auth", "status"}, {"auth", "enable"},
			{"user", "list"}, {"user", "get", "ann"}, {"user", "get", "root"}, {"role", "list"}, {"role", "get", "r"}, {"role", "get", "root"},
			{"user", "add", "eve:pw"}, {"user", "passwd", "eve"}, {"user", "delete", "root"}, {"role", "add", "x"}, {"user", "grant-role", "ann", "r"},
		} {
			if user != "" {
				args = append(args, user)
			}
			p.feed("pw\npw\n", args...)
		}
		txn := []string{"txn"}
		if user != "" {
			txn = append(txn, user)
		}
		p.feed("value(\"c\") = \"1\"\n\nput d2 1\n\nget a\n\n", txn...)
		p.feed("value(\"e\") = \"1\"\n\n\n\n", txn...)
		p.feed("\n\nput e 1\n\n", txn...)
	}
	p.run("user", "revoke-role", "ann", "r", root)
	p.run("user", "revoke-role", "ann", "r", root)
	p.run("get", "c", ann)
	p.run("role", "revoke-permission", "r", "a", "b", root)
	p.run("role", "revoke-permission", "r", "a", "b", root)
	p.run("role", "revoke-permission", "r", "x", "--from-key", root)
	p.run("role", "delete", "w", root)
	p.run("role", "delete", "root", root)
	p.run("user", "delete", "ann", root)
	p.run("get", "c", ann)
	p.run("user", "revoke-role", "root", "root", root)
	p.run("auth", "disable", ann)
	p.run("auth", "disable", root)
	p.run("auth", "status")
	p.run("put", "a", "1")
}
