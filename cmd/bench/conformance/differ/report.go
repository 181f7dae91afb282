package differ

import (
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// describeMax is the most bytes of a message's text in a report.
const describeMax = 4000

// Print writes the tables, if tables is set, and a summary. It reports whether there
// were no differences and everything was exercised at least least times.
func (r Result) Print(w io.Writer, tables bool, least int, took time.Duration) (bool, error) {
	var b strings.Builder
	if tables {
		b.WriteString("\nCoverage: how often each call, option and error was exercised\n")
		if err := r.Coverage.Print(&b); err != nil {
			return false, fmt.Errorf("differ: %w", err)
		}
		b.WriteString("\nExempt fields\n")
		for _, e := range Exemptions {
			fmt.Fprintf(&b, "  %s\n      because: %s\n      checked: %s\n", e.Field, e.Reason, e.Check)
		}
	}
	fmt.Fprintf(&b, "\n%d seeds, %d calls, %d differences, %s\n", r.Seeds, r.Calls, len(r.Differences), took.Round(time.Second))
	if asked := r.Coverage["allowed"] + r.Coverage["refused"]; asked > 0 {
		fmt.Fprintf(&b, "%d of these calls ask what users may do: %d allowed, %d refused\n", asked, r.Coverage["allowed"], r.Coverage["refused"])
	}
	short := r.Coverage.Below(least)
	for _, line := range short {
		fmt.Fprintf(&b, "below %d: %s\n", least, line)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return false, fmt.Errorf("differ: %w", err)
	}
	return len(r.Differences) == 0 && len(short) == 0, nil
}

// report prints a sequence's differences.
func report(cfg Config, found Result) error {
	for _, d := range found.Differences {
		_, err := fmt.Fprintf(cfg.Out, "\nDIFFERENCE in seed %d at step %d: %s on member %d%s\n--- request\n%s\n--- left\n%s\n--- right\n%s\n%sto run this seed again: %s\n",
			d.Seed, d.Step, d.Call.Method, d.Call.Member, d.Call.caller(), describe(d.Call.Request), d.Left, d.Right, d.Logs, cfg.Rerun(d.Seed))
		if err != nil {
			return fmt.Errorf("differ: %w", err)
		}
	}
	return nil
}

// caller says who makes a call of a sequence with authentication.
func (c Call) caller() string {
	var b strings.Builder
	for _, part := range []struct {
		present bool
		text    string
	}{
		{c.User != "", "as " + c.User},
		{c.Earlier > 0, fmt.Sprintf("with a token before %d others", c.Earlier)},
		{c.Presented != "", "presented " + c.Presented},
		{c.Forged != "", "with a signed token: " + c.Forged},
		{c.Certificate != "", "with the certificate of " + c.Certificate},
	} {
		if part.present {
			b.WriteString(", " + part.text)
		}
	}
	return b.String()
}

// String formats a reply for a report.
func (r Reply) String() string {
	var b strings.Builder
	if r.Code != codes.OK {
		fmt.Fprintf(&b, "%s: %s\n", r.Code, r.Error)
	}
	if r.Irregular != "" {
		fmt.Fprintf(&b, "irregular: %s\n", r.Irregular)
	}
	if r.Message != nil {
		b.WriteString(describe(r.Message))
	}
	for _, m := range r.Messages {
		fmt.Fprintf(&b, "watcher %s\n", describe(m))
	}
	return strings.TrimSpace(b.String())
}

// describe formats a request or reply for a report, truncated to describeMax.
func describe(m proto.Message) string {
	if m == nil {
		return "(none)"
	}
	text := strings.TrimSpace(prototext.Format(m))
	if text == "" {
		return "(empty)"
	}
	if len(text) > describeMax {
		text = text[:describeMax] + fmt.Sprintf("… (%d bytes in all)", len(text))
	}
	return text
}
