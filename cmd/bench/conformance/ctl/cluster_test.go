package ctl

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSameCluster runs one script on three members of both sides.
func TestSameCluster(t *testing.T) {
	p := startPair(t, 3, []string{"--heartbeat-interval=50", "--election-timeout=500"}, nil)
	p.lead(0)
	for _, part := range []struct {
		name string
		play func(*pair)
	}{
		{"lists", lists}, {"followers", followers}, {"leader", leadership}, {"members", membership},
	} {
		t.Run(part.name, func(t *testing.T) { part.play(p.with(t)) })
	}
}

// lead makes a member the leader of each side and sets the variables of ids.
func (p *pair) lead(member int) {
	p.Helper()
	p.both(func(_ int, s *side) {
		if err := s.cluster.MoveLeader(p.Context(), member); err != nil {
			p.Error(err)
		}
		for i, m := range s.cluster.Members {
			hex, symbol := fmt.Sprintf("%x", m.ID), fmt.Sprint("MEMBER", i)
			s.vars[fmt.Sprint("m", i)] = hex
			s.ids[hex], s.ids[fmt.Sprint(m.ID)] = symbol, symbol
		}
	})
}

// via sets the members that the next commands use.
func (p *pair) via(members ...int) {
	for _, s := range p.sides {
		s.via = members
	}
}

var formats = []string{"simple", "table", "json", "fields"}

func lists(p *pair) {
	p.via(1)
	p.run("put", "a", "1")
	for _, format := range formats {
		p.settle()
		p.via(1) // of several, etcdctl would use any
		p.run("member", "list", "-w", format)
		p.via(0, 1, 2)
		p.run("endpoint", "status", "-w", format)
		p.run("endpoint", "status", "--cluster", "-w", format)
		p.run("endpoint", "health", "-w", format)
		p.run("endpoint", "health", "--cluster", "-w", format)
		p.run("endpoint", "hashkv", "-w", format)
		p.run("endpoint", "hashkv", "--cluster", "-w", format)
	}
	p.via(2)
	p.run("member", "list", "--hex", "-w", "json")
	p.run("member", "list", "--consistency=s")
}

// settle waits until all members have applied everything.
func (p *pair) settle() {
	p.Helper()
	p.both(func(_ int, s *side) {
		if err := s.cluster.Sync(p.Context()); err != nil {
			p.Error(err)
		}
	})
}

// followers uses members that do not lead.
func followers(p *pair) {
	p.via(1)
	p.run("put", "f", "1", "-w", "json")
	p.feed("value(\"f\") = \"1\"\n\nput f 2\n\nget f\n\n", "txn")
	p.via(2)
	p.run("get", "f", "-w", "json")
	p.run("lease", "grant", "100")
	p.run("put", "leased", "x", "--lease={lease}")
	p.via(1)
	p.run("lease", "timetolive", "{lease}", "--keys")
	p.run("lease", "keep-alive", "{lease}", "--once")
	p.run("lease", "keep-alive", "{lease}", "--once", "-w", "json")
	p.settle()
	p.run("lease", "list")
	p.run("lock", "name", "--", "sh", "-c", "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV")
	holds := p.start("lock", "held")
	holds.awaitOutput("held/")
	p.via(2)
	waits := p.start("lock", "held", "--ttl=30", "echo", "second")
	p.waiting("held/", 2)
	waits.noOutput("second")
	holds.interrupt()
	waits.awaitOutput("second")
	waits.end(func(*process) error { return nil })
	p.run("lease", "revoke", "{lease}")
	p.run("lease", "keep-alive", "{lease}", "--once")
	p.run("lease", "keep-alive", "{lease}")
	p.run("get", "leased")
	watches := p.start("watch", "f", fmt.Sprint("--rev=", p.revision()+1))
	p.via(1)
	p.run("put", "f", "3")
	watches.awaitOutput("3")
	watches.interrupt()
	p.run("compaction", fmt.Sprint(p.revision()), "--physical")
	p.via(0, 1, 2)
	p.settle()
	p.run("endpoint", "hashkv", "--cluster")
}

func leadership(p *pair) {
	p.via(1)
	p.run("move-leader", "{m1}") // not sent to the leader
	p.via(0, 1, 2)
	p.run("move-leader")
	p.run("move-leader", "nonsense")
	p.run("move-leader", "12345")
	p.run("move-leader", "{m0}") // it leads
	p.run("move-leader", "{m2}")
	p.both(func(_ int, s *side) {
		if leader, err := s.cluster.AwaitLeader(p.Context()); err != nil || leader != 2 {
			p.Errorf("%s: got leader %d, %v; want 2", s.name, leader, err)
		}
	})
	p.run("endpoint", "status", "--cluster")
}

// membership changes the members. The new ones never start.
func membership(p *pair) {
	p.via(1)
	const first, second, third = "--peer-urls=http://127.0.0.1:1", "--peer-urls=http://127.0.0.1:2", "--peer-urls=http://127.0.0.1:3"
	p.run("member", "add")
	p.run("member", "add", "new")
	p.run("member", "add", "new", "--peer-urls=nonsense")
	p.unhealthy()
	p.run("member", "add", "new", "--learner", first)
	p.run("member", "list")
	p.run("member", "list", "-w", "json")
	p.run("member", "list", "-w", "table")
	p.run("member", "add", "new", "--learner", first+",http://127.0.0.1:2")
	p.run("member", "add", "newer", "--learner", second)
	p.run("member", "promote", "{added}")
	p.run("member", "promote", "{m0}")
	p.run("member", "promote", "12345")
	p.run("member", "promote")
	p.run("member", "update", "{added}", second)
	p.run("member", "update", "{added}", second, "-w", "json")
	p.run("member", "update", "12345", third)
	p.run("member", "update", "{added}")
	p.run("member", "list")
	p.run("member", "remove", "{added}")
	p.run("member", "remove", "{added}")
	p.run("member", "remove", "12345")
	p.run("member", "remove", "nonsense")
	p.run("member", "remove")
	p.run("member", "add", "voter", third)
	p.run("member", "list", "-w", "json")
	for _, s := range p.sides {
		s.vars["voter"] = s.vars["added"]
	}
	p.run("member", "add", "another", second)
	p.run("member", "remove", "{added}", "-w", "json")
	p.run("member", "remove", "{voter}")
	p.run("member", "list", "-w", "fields")
}

// unhealthy waits until changes of the members are allowed: etcd refuses them until all
// members have been connected for five seconds. The change that it attempts is refused
// after that check, because the URL is in use.
func (p *pair) unhealthy() {
	p.Helper()
	p.both(func(_ int, s *side) {
		for end := time.Now().Add(timeout); ; <-time.After(100 * time.Millisecond) {
			out, _ := s.command(p.Context(), []string{"member", "add", "x", "--learner", "--peer-urls=" + s.cluster.Members[0].PeerURL}).CombinedOutput()
			if !strings.Contains(string(out), "unhealthy cluster") {
				return
			}
			if time.Now().After(end) {
				p.Errorf("%s: still refuses changes: %s", s.name, out)
				return
			}
		}
	})
}

var (
	// Each member's connection and state have their own times and sizes.
	tookColumn    = regexp.MustCompile(`("took":"|"Took" : |│ +)[0-9.]+(?:ms|µs|s)`)
	statusFields  = regexp.MustCompile(`("(?:RaftAppliedIndex|DBSizeInUse)" : )\d+|("StorageVersion" : )"[0-9.]*"`)
	initialMember = regexp.MustCompile(`ETCD_INITIAL_CLUSTER="([^"]*)"`)
	// etcdctl pads ids to 16 digits.
	paddedID = regexp.MustCompile(`(Member|cluster) +([0-9a-f]+)`)
	// A line of a list: of members, or of endpoints.
	listLine = regexp.MustCompile(`^(?:[0-9a-f]{12,16}, |(?:http://)?ENDPOINT\d)`)
)

// arranged sorts what etcdctl lists in random order, which is that of ids or of the times
// of replies, and replaces further parts that may differ between members.
func arranged(text string) string {
	text = tookColumn.ReplaceAllString(text, "${1}TIME")
	text = paddedID.ReplaceAllString(text, "$1 $2")
	text = statusFields.ReplaceAllString(text, "$1$2:N")
	text = initialMember.ReplaceAllStringFunc(text, func(m string) string {
		items := strings.Split(initialMember.FindStringSubmatch(m)[1], ",")
		slices.Sort(items)
		return "ETCD_INITIAL_CLUSTER=" + strings.Join(items, ",")
	})
	if sorted, ok := arrangedJSON(text); ok {
		return sorted
	}
	if blocks := strings.Split(text, "\n\n"); strings.HasPrefix(text, `"Endpoint"`) {
		slices.SortFunc(blocks, byContent)
		return strings.Join(blocks, "\n\n")
	}
	lines := strings.SplitAfter(text, "\n")
	for from := 0; from < len(lines); {
		to := from + 1
		for isRow(lines[from]) && isRow(lines[to]) {
			to++
		}
		for i := from; i < to; i++ {
			lines[i] = statusLine(lines[i])
		}
		slices.SortFunc(lines[from:to], byContent)
		from = to
	}
	return strings.Join(lines, "")
}

// isRow reports whether the order of the line among its neighbours may differ.
func isRow(line string) bool { return strings.HasPrefix(line, "│") || listLine.MatchString(line) }

// byContent compares texts without their ids.
func byContent(a, b string) int {
	return strings.Compare(idPattern.ReplaceAllString(a, "ID"), idPattern.ReplaceAllString(b, "ID"))
}

// statusLine replaces the sizes, the term and the indices in a line of a status, and the
// width of a table's columns, which depends on ids.
func statusLine(line string) string {
	separator, columns := ", ", []int{3, 4, 5, 6, 10, 11, 12}
	if strings.ContainsAny(line, "│┌├└") {
		line = regexp.MustCompile(` +`).ReplaceAllString(regexp.MustCompile(`─+`).ReplaceAllString(line, "─"), " ")
		separator = "│"
		for i := range columns {
			columns[i]++ // the line begins with a separator
		}
	}
	cells := strings.Split(line, separator)
	if len(cells) < 16 || strings.Contains(line, "STORAGE VERSION") {
		return line
	}
	for _, i := range columns {
		cells[i] = "N"
	}
	return strings.Join(cells, separator)
}

// arrangedJSON sorts a list, or the list of members in an object, of a text in JSON.
func arrangedJSON(text string) (string, bool) {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var value any
	if !strings.HasPrefix(text, "[") && !strings.HasPrefix(text, "{") || decoder.Decode(&value) != nil || decoder.More() {
		return "", false
	}
	list, _ := value.([]any)
	if object, ok := value.(map[string]any); ok {
		list, _ = object["members"].([]any)
	}
	if list == nil {
		return "", false
	}
	encoded := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // it was decoded
		}
		return string(b)
	}
	slices.SortFunc(list, func(a, b any) int { return byContent(encoded(a), encoded(b)) })
	return encoded(value) + "\n", true
}

func TestArranged(t *testing.T) {
	for text, want := range map[string]string{
		"aaaaaaaaaaaa, started, m2, PEER1\nbbbbbbbbbbbb, started, m1, PEER0\n": "bbbbbbbbbbbb, started, m1, PEER0\naaaaaaaaaaaa, started, m2, PEER1\n",
		"http://ENDPOINT1 is healthy\nhttp://ENDPOINT0 is healthy\n":           "http://ENDPOINT0 is healthy\nhttp://ENDPOINT1 is healthy\n",
		"b\na\n": "b\na\n",
		"Member 1234567890abcdef added to cluster   abcdef1234567890\n":                                          "Member 1234567890abcdef added to cluster abcdef1234567890\n",
		`{"members":[{"ID":111111111111111111,"name":"b"},{"ID":222222222222222222,"name":"a"}]}` + "\n":         `{"members":[{"ID":222222222222222222,"name":"a"},{"ID":111111111111111111,"name":"b"}]}` + "\n",
		`[{"endpoint":"b","took":"1.5ms"},{"endpoint":"a","took":"20µs"}]` + "\n":                                `[{"endpoint":"a","took":"TIME"},{"endpoint":"b","took":"TIME"}]` + "\n",
		"ETCD_INITIAL_CLUSTER=\"b=2,a=1\"\n":                                                                     "ETCD_INITIAL_CLUSTER=a=1,b=2\n",
		"ENDPOINT0, 7167ca72d3eeec4, 3.7.3, 3.7.0, 20 kB, 16 kB, 20%, 2.1 GB, true, false, 2, 8, 8, , , false\n": "ENDPOINT0, 7167ca72d3eeec4, 3.7.3, N, N, N, N, 2.1 GB, true, false, N, N, N, , , false\n",
		"┌──────┐\n│   ID │\n├──────┤\n│    b │\n│  a │\n└──────┘\n":                                             "┌─┐\n│ ID │\n├─┤\n│ a │\n│ b │\n└─┘\n",
	} {
		if got := arranged(text); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	}
}
