// Package verdict has the conclusions of a scenario: bounds, and whether they hold.
package verdict

import (
	"fmt"
	"io"
	"slices"
)

// Verdict is a bound with the measured figures, and whether it holds.
type Verdict struct {
	What string
	OK   bool
}

// Of returns a verdict with formatted figures.
func Of(ok bool, format string, figures ...any) Verdict {
	return Verdict{What: fmt.Sprintf(format, figures...), OK: ok}
}

// Print writes the verdicts and reports whether all hold.
func Print(w io.Writer, verdicts []Verdict) (bool, error) {
	for _, v := range verdicts {
		mark := "ok  "
		if !v.OK {
			mark = "FAIL"
		}
		if _, err := fmt.Fprintln(w, mark, v.What); err != nil {
			return false, fmt.Errorf("verdict: %w", err)
		}
	}
	return AllOK(verdicts), nil
}

// AllOK reports whether all bounds hold.
func AllOK(verdicts []Verdict) bool {
	return !slices.ContainsFunc(verdicts, func(v Verdict) bool { return !v.OK })
}
