package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/troupe-db/troupe/applyactor/auth"
)

// pemKeys returns a new pair of keys for a method in PEM format.
func pemKeys(t testing.TB, method string) (private, public []byte) {
	t.Helper()
	var key crypto.Signer
	var err error
	switch {
	case strings.HasPrefix(method, "HS"):
		return []byte("a secret of some length"), nil
	case method == "ES256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case method == "ES384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case method == "ES512":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case method == "EdDSA":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	private = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if der, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		t.Fatal(err)
	}
	return private, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// clock is a clock that the test sets.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newClock() *clock { return &clock{time.Unix(1_000_000, 0)} }

func mustJWT(t testing.TB, cfg JWTConfig) *JWT {
	t.Helper()
	if cfg.Now == nil {
		cfg.Now = newClock().Now
	}
	if cfg.TTL == 0 {
		cfg.TTL = time.Minute
	}
	j, err := NewJWT(cfg)
	if err != nil {
		t.Fatalf("%s: %v", cfg.Method, err)
	}
	return j
}

var ann = auth.Identity{User: "ann", Revision: 7}

// TestMethods: a token of each method is valid for those who have the public key, until it
// expires; without the private key none is issued.
func TestMethods(t *testing.T) {
	for _, method := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "HS256", "HS384", "HS512", "EdDSA"} {
		private, public := pemKeys(t, method)
		c := newClock()
		signer := mustJWT(t, JWTConfig{Method: method, PrivateKey: private, PublicKey: public, Now: c.Now})
		token, err := signer.Sign(ann)
		if err != nil {
			t.Errorf("%s: %v", method, err)
			continue
		}
		verifier := signer
		if public != nil {
			verifier = mustJWT(t, JWTConfig{Method: method, PublicKey: public, Now: c.Now})
			if _, err := verifier.Sign(ann); !errors.Is(err, ErrVerifyOnly) {
				t.Errorf("%s: sign with a public key: got %v, want %v", method, err, ErrVerifyOnly)
			}
		}
		if id, ok := verifier.Verify(token); !ok || id != ann {
			t.Errorf("%s: got %+v, %t, want %+v", method, id, ok, ann)
		}
		c.now = c.now.Add(time.Minute + time.Second)
		if id, ok := verifier.Verify(token); ok {
			t.Errorf("%s: an expired token is of %+v", method, id)
		}
	}
}

// TestForged: tokens with another algorithm, above all none, with another key, with changed claims
// or without some.
func TestForged(t *testing.T) {
	private, public := pemKeys(t, "RS256")
	c := newClock()
	j := mustJWT(t, JWTConfig{Method: "RS256", PrivateKey: private, Now: c.Now})
	good, err := j.Sign(ann)
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.MapClaims{claimUser: "root", claimRevision: 7, claimExpires: c.now.Add(time.Minute).Unix()}
	signed := func(m jwt.SigningMethod, key any, claims jwt.MapClaims) string {
		token, err := jwt.NewWithClaims(m, claims).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	other, _ := pemKeys(t, "RS256")
	otherKey, err := jwt.ParseRSAPrivateKeyFromPEM(other)
	if err != nil {
		t.Fatal(err)
	}
	key, err := jwt.ParseRSAPrivateKeyFromPEM(private)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	payload := base64.RawURLEncoding.EncodeToString([]byte(`{"username":"root","revision":7,"exp":2000000}`))
	without := func(name string) jwt.MapClaims {
		left := jwt.MapClaims{}
		for k, v := range claims {
			if k != name {
				left[k] = v
			}
		}
		return left
	}
	with := func(name string, value any) jwt.MapClaims {
		c := without(name)
		c[name] = value
		return c
	}
	for name, token := range map[string]string{
		"nothing":                         "",
		"no token":                        "a.b.c",
		"alg none":                        signed(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, claims),
		"HMAC with the public key":        signed(jwt.SigningMethodHS256, public, claims),
		"another algorithm, the same key": signed(jwt.SigningMethodRS512, key, claims),
		"another padding, the same key":   signed(jwt.SigningMethodPS256, key, claims),
		"another key":                     signed(jwt.SigningMethodRS256, otherKey, claims),
		"other claims":                    parts[0] + "." + payload + "." + parts[2],
		"no signature":                    parts[0] + "." + parts[1] + ".",
		"no user":                         signed(jwt.SigningMethodRS256, key, without(claimUser)),
		"no revision":                     signed(jwt.SigningMethodRS256, key, without(claimRevision)),
		"a user that is no text":          signed(jwt.SigningMethodRS256, key, with(claimUser, 5)),
		"a revision that is no number":    signed(jwt.SigningMethodRS256, key, with(claimRevision, "7")),
		"a negative revision":             signed(jwt.SigningMethodRS256, key, with(claimRevision, -1)),
		"not valid yet":                   signed(jwt.SigningMethodRS256, key, with("nbf", c.now.Add(time.Hour).Unix())),
	} {
		if id, ok := j.Verify(token); ok {
			t.Errorf("%s: got %+v, want that it is refused", name, id)
		}
	}
	if id, ok := j.Verify(signed(jwt.SigningMethodRS256, key, claims)); !ok || id.User != "root" {
		t.Errorf("a good token: got %+v, %t", id, ok)
	}
	for revision, want := range map[float64]uint64{6.5: 6, 0: 0, -0.5: 0} { // as in etcd
		if id, ok := j.Verify(signed(jwt.SigningMethodRS256, key, with(claimRevision, revision))); !ok || id.Revision != want {
			t.Errorf("revision %v: got %+v, %t, want %d", revision, id, ok, want)
		}
	}
	// As in etcd, a token of another issuer may have no end.
	if _, ok := j.Verify(signed(jwt.SigningMethodRS256, key, without(claimExpires))); !ok {
		t.Error("a token that never expires is refused")
	}
}

// TestJWTConfig: what cannot work is refused when the member starts.
func TestJWTConfig(t *testing.T) {
	private, public := pemKeys(t, "RS256")
	_, otherPublic := pemKeys(t, "RS256")
	ecPrivate, _ := pemKeys(t, "ES256")
	for name, tc := range map[string]struct {
		cfg  JWTConfig
		want string
	}{
		"no method":              {JWTConfig{PrivateKey: private}, errSignMethod.Error()},
		"none":                   {JWTConfig{Method: "none", PrivateKey: private}, errSignMethod.Error()},
		"unknown method":         {JWTConfig{Method: "RS1", PrivateKey: private}, errSignMethod.Error()},
		"no key":                 {JWTConfig{Method: "RS256"}, errMissingKey.Error()},
		"no secret":              {JWTConfig{Method: "HS256", PublicKey: public}, errMissingKey.Error()},
		"keys of another kind":   {JWTConfig{Method: "RS256", PrivateKey: ecPrivate}, "private key"},
		"public key as private":  {JWTConfig{Method: "RS256", PrivateKey: public}, "private key"},
		"not PEM":                {JWTConfig{Method: "ES256", PublicKey: []byte("key")}, "public key"},
		"keys that do not match": {JWTConfig{Method: "RS256", PrivateKey: private, PublicKey: otherPublic}, errKeyMismatch.Error()},
		"EdDSA with an RSA key":  {JWTConfig{Method: "EdDSA", PrivateKey: private}, "private key"},
	} {
		if _, err := NewJWT(tc.cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

// TestParseTokens: the values of --auth-token.
func TestParseTokens(t *testing.T) {
	read := func(path string) ([]byte, error) {
		if path == "missing" {
			return nil, fs.ErrNotExist
		}
		return []byte("content of " + path), nil
	}
	for value, want := range map[string]Kind{"simple": Simple, "simple,foo=bar": Simple, "": NoTokens, "jwt,sign-method=HS256,priv-key=k": Signed} {
		kind, _, unknown, err := ParseTokens(value, read)
		if kind != want || err != nil || len(unknown) > 0 {
			t.Errorf("%q: got %v, %v, %v, want %v", value, kind, unknown, err, want)
		}
	}
	_, cfg, unknown, err := ParseTokens("jwt,sign-method=RS256,pub-key=pub,priv-key=priv,ttl=10m,color=red", read)
	if err != nil || cfg.Method != "RS256" || string(cfg.PublicKey) != "content of pub" || string(cfg.PrivateKey) != "content of priv" ||
		cfg.TTL != 10*time.Minute || len(unknown) != 1 || unknown[0] != "color" {
		t.Errorf("all options: got %+v, unknown %q, %v", cfg, unknown, err)
	}
	if _, cfg, _, _ := ParseTokens("jwt,sign-method=RS256,ttl=", read); cfg.TTL != DefaultJWTTTL {
		t.Errorf("no TTL: got %v, want %v", cfg.TTL, DefaultJWTTTL)
	}
	for _, value := range []string{"paper", "jwt,sign-method", "jwt,sign-method=a=b", "jwt,ttl=1m,ttl=2m", "jwt,ttl=soon", "jwt,pub-key=missing", "simple,"} {
		if _, _, _, err := ParseTokens(value, read); !errors.Is(err, errOptions) && value != "simple," {
			t.Errorf("%q: got %v, want %v", value, err, errOptions)
		}
	}
}

// FuzzJWT: no token that was not signed is valid.
func FuzzJWT(f *testing.F) {
	j := mustJWT(f, JWTConfig{Method: "HS256", PrivateKey: []byte("the secret of the cluster")})
	good, err := j.Sign(ann)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good[:len(good)-1])
	f.Add("eyJhbGciOiJub25lIn0.eyJ1c2VybmFtZSI6InJvb3QifQ.")
	f.Fuzz(func(t *testing.T, token string) {
		// Go's decoder of base64 skips line ends.
		if id, ok := j.Verify(token); ok && strings.NewReplacer("\n", "", "\r", "").Replace(token) != good {
			t.Errorf("%q is of %+v", token, id)
		}
	})
}

// FuzzClaims: whatever a token says that was signed, nothing panics, and one that is valid has a
// user, a revision, and has not expired.
func FuzzClaims(f *testing.F) {
	j := mustJWT(f, JWTConfig{Method: "HS256", PrivateKey: []byte("the secret of the cluster")})
	now := j.cfg.Now()
	for _, claims := range []string{`{"username":"ann","revision":3,"exp":%d}`, `{"username":"ann","revision":1e300,"exp":1e300}`,
		`{"username":7,"revision":"3"}`, `{"username":"ann","revision":-1,"exp":null}`, `[]`, `{"exp":"%d"}`, `{"nbf":%d,"iat":{}}`} {
		f.Add([]byte(strings.ReplaceAll(claims, "%d", fmt.Sprint(now.Add(time.Hour).Unix()))))
	}
	f.Fuzz(func(t *testing.T, claims []byte) {
		encoded := base64.RawURLEncoding
		signed := encoded.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + encoded.EncodeToString(claims)
		signature, err := j.method.Sign(signed, j.sign)
		if err != nil {
			t.Fatal(err)
		}
		id, ok := j.Verify(signed + "." + encoded.EncodeToString(signature))
		if !ok {
			return
		}
		var read map[string]any
		if err := json.Unmarshal(claims, &read); err != nil {
			t.Fatalf("%q: got %+v, although it is no JSON: %v", claims, id, err)
		}
		user, _ := read[claimUser].(string)
		revision, ok := read[claimRevision].(float64)
		if user != id.User || !ok || revision < 0 {
			t.Errorf("%q: got %+v, although it does not say so", claims, id)
		}
		if expires, ok := read[claimExpires].(float64); ok && expires != 0 && expires < float64(now.Unix()) { // 0 is never
			t.Errorf("%q: got %+v, although it has expired at %v", claims, id, now.Unix())
		}
	})
}
