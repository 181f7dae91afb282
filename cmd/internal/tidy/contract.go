package tidy

import (
	"fmt"
	"go/ast"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// sections are the headings of an actor package's doc.go, in their order.
var sections = []string{"Hears", "Says", "Mailbox", "Supervision", "Invariants", "Blocks"}

// contract is what the doc.go of an actor package says, and what its code does.
type contract struct {
	dir         string
	headings    []string
	hears, says map[string]bool   // by name, from doc.go
	handled     map[string]string // name → position in the source
	// built are the messages that the code makes; referred are all that it names.
	built, referred map[message]string
}

// message is a type that is sent, by the import path of its package.
type message struct{ pkg, name string }

// CheckContracts compares the doc.go of each actor package with its code: # Hears with
// the messages that its actors handle, and # Says with the messages that it makes.
func (t *Tree) CheckContracts() (findings []string) {
	contracts := t.contracts()
	heard := map[message]bool{}
	for _, c := range contracts {
		for m := range c.referred {
			if _, ok := c.handled[m.name]; ok {
				heard[m] = true
			}
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(contracts)) {
		c := contracts[dir]
		findings = append(findings, c.checkHeadings()...)
		findings = append(findings, c.checkHears()...)
		findings = append(findings, c.checkSays(heard)...)
	}
	return findings
}

func (t *Tree) contracts() map[string]*contract {
	all := map[string]*contract{}
	for _, f := range t.production() {
		if rank, ok := Rank(f.Dir); !ok || rank != 3 {
			continue
		}
		c := all[f.Dir]
		if c == nil {
			c = &contract{dir: f.Dir, hears: map[string]bool{}, says: map[string]bool{},
				handled: map[string]string{}, built: map[message]string{}, referred: map[message]string{}}
			all[f.Dir] = c
		}
		if f.ast.Doc != nil {
			c.readDoc(f.ast.Doc.Text())
		}
		t.readCode(c, f)
	}
	return all
}

// names matches the start of a line in a list of messages: one name, or several
// with commas, and then the explanation after two spaces or more.
var names = regexp.MustCompile(`^\t([A-Z]\w*(?:, [A-Z]\w*)*)(?:\s{2,}|$)`)

func (c *contract) readDoc(doc string) {
	lists := map[string]map[string]bool{"Hears": c.hears, "Says": c.says}
	var list map[string]bool
	for line := range strings.Lines(doc) {
		line = strings.TrimRight(line, "\n")
		if heading, ok := strings.CutPrefix(line, "# "); ok {
			c.headings = append(c.headings, heading)
			list = lists[heading]
			continue
		}
		if m := names.FindStringSubmatch(line); m != nil && list != nil {
			for name := range strings.SplitSeq(m[1], ", ") {
				list[name] = true
			}
		}
	}
}

// readCode collects the messages that are handled (in type switches and type
// assertions), built (in composite literals), and named anywhere.
func (t *Tree) readCode(c *contract, f *File) {
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CaseClause:
			for _, e := range n.List {
				c.handle(t, f, e)
			}
		case *ast.TypeAssertExpr:
			c.handle(t, f, n.Type)
		case *ast.CompositeLit:
			if m, ok := f.messageType(n.Type); ok {
				c.built[m] = t.at(n)
			}
		case *ast.SelectorExpr:
			if m, ok := f.messageType(n); ok {
				c.referred[m] = t.at(n)
			}
		}
		return true
	})
}

func (c *contract) handle(t *Tree, f *File, e ast.Expr) {
	star, ok := e.(*ast.StarExpr)
	if !ok {
		return
	}
	if m, ok := f.messageType(star.X); ok {
		c.handled[m.name] = t.at(e)
		return
	}
	// A type of this package that comes from the gateway.
	if id, ok := star.X.(*ast.Ident); ok && id.IsExported() {
		c.handled[id.Name] = t.at(e)
	}
}

// messageType reports whether an expression names the type of a message: one of
// proto/, raft's own, or a tick. Generated wrappers of a oneof are not messages.
func (f *File) messageType(e ast.Expr) (message, bool) {
	p, name, ok := f.selector(e)
	if !ok || strings.Contains(name, "_") {
		return message{}, false
	}
	dir, _ := inside(p)
	switch {
	case strings.HasPrefix(dir, "proto/"):
	case p == "go.etcd.io/raft/v3/raftpb" && name == "Message":
	case dir == "actors" && name == "Tick":
	default:
		return message{}, false
	}
	return message{p, name}, true
}

func (c *contract) checkHeadings() []string {
	if slices.Equal(c.headings, sections) {
		return nil
	}
	return []string{fmt.Sprintf("%s/doc.go has the headings %q, and must have %q", c.dir, c.headings, sections)}
}

func (c *contract) checkHears() (findings []string) {
	for _, name := range slices.Sorted(maps.Keys(c.handled)) {
		if !c.hears[name] {
			findings = append(findings, fmt.Sprintf("%s: handles %s, which # Hears of %s/doc.go does not list: add it there", c.handled[name], name, c.dir))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.hears)) {
		if c.handled[name] == "" {
			findings = append(findings, fmt.Sprintf("%s/doc.go: # Hears lists %s, but no case of a type switch handles it: delete one or write the other", c.dir, name))
		}
	}
	return findings
}

func (c *contract) checkSays(heard map[message]bool) (findings []string) {
	for _, m := range slices.SortedFunc(maps.Keys(c.built), func(a, b message) int { return strings.Compare(a.name, b.name) }) {
		if heard[m] && !c.says[m.name] {
			findings = append(findings, fmt.Sprintf("%s: makes a %s, which # Says of %s/doc.go does not list: add it there, with its receiver", c.built[m], m.name, c.dir))
		}
	}
	known := map[string]bool{}
	for m := range c.referred {
		known[m.name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(c.says)) {
		if !known[name] {
			findings = append(findings, fmt.Sprintf("%s/doc.go: # Says lists %s, but the code does not name it: delete it, or send it", c.dir, name))
		}
	}
	return findings
}
