package port

import "testing"

func TestIdentify(t *testing.T) {
	for first, want := range map[string]Protocol{
		"PRI": HTTP2, "GET": HTTP1, "PUT": HTTP1, "POS": HTTP1, "OPT": HTTP1, "PRO": HTTP1,
		"\x16\x03\x01": TLS, "\x16\x03\x03": TLS, "\x16\x02\x01": Unknown, "\x16AB": Unknown,
		"get": Unknown, "GE ": Unknown, "\x00\x00\x00": Unknown, "\xff\xfe\xfd": Unknown, "PR\n": Unknown,
	} {
		if got := Identify([]byte(first)); got != want {
			t.Errorf("%q: got %d, want %d", first, got, want)
		}
	}
}
