package pairs

import (
	"strings"
	"testing"
	"time"
)

func TestMarkdown(t *testing.T) {
	cfg := Config{Contestants: []Contestant{{Name: "a"}, {Name: "b"}}, Loads: []string{PutLoad}}
	us := func(n int) Sample {
		return Sample{PerSecond: float64(n), CPUPerRequest: time.Duration(n) * time.Microsecond}
	}
	text := Markdown(cfg, Results{PutLoad: {"a": {us(100), us(200), us(400)}, "b": {us(50), us(200), us(300)}}})
	for _, want := range []string{
		"## put\n",
		"| | a | b | b/a |\n|---|---|---|---|\n",
		// Median of the rounds' ratios 0.5, 1 and 0.75, not ratio of the medians.
		"| server CPU, µs a request | 200.0 (100.0–400.0) | 200.0 (50.0–300.0) | 0.75 (0.50–1.00) |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Config{Contestants: []Contestant{{Name: "a"}}, Rounds: 1, Loads: []string{GetLoad}, Benchmark: "x", Clients: 1, Conns: 1, Total: 1}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	bad := good
	bad.Loads = []string{"sing"}
	if bad.validate() == nil {
		t.Error("unknown load accepted")
	}
	bad = good
	bad.Rounds = 0
	if bad.validate() == nil {
		t.Error("no rounds accepted")
	}
}
