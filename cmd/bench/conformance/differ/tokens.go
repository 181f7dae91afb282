package differ

import (
	"bytes"
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// Tokens of calls: those that a side has issued, the last one or an earlier one of a user, in the
// forms and fields in which a client may send them; and tokens that sequences make themselves.

// jwtTTL is the time for which servers issue signed tokens. None may expire during a sequence.
const jwtTTL = time.Hour

// A presentation makes the metadata of a call, as pairs of a field and its value, of a token.
type presentation func(token string) []string

// presentations lists how a call may present a token of its user. A client that has no token sends
// none, unless the presentation needs none.
var presentations = map[string]presentation{
	"": func(t string) []string { return []string{rpctypes.TokenFieldNameGRPC, t} },
	"in the field authorization": func(t string) []string {
		return []string{rpctypes.TokenFieldNameSwagger, t}
	},
	"as a bearer token": func(t string) []string { return []string{rpctypes.TokenFieldNameSwagger, "Bearer " + t} },
	"as a bearer token twice": func(t string) []string {
		return []string{rpctypes.TokenFieldNameGRPC, "Bearer Bearer " + t}
	},
	"beside a wrong one in authorization": func(t string) []string {
		return []string{rpctypes.TokenFieldNameGRPC, t, rpctypes.TokenFieldNameSwagger, "wrong"}
	},
	"in authorization beside a wrong one": func(t string) []string {
		return []string{rpctypes.TokenFieldNameGRPC, "wrong.1", rpctypes.TokenFieldNameSwagger, t}
	},
	"before another one": func(t string) []string {
		return []string{rpctypes.TokenFieldNameGRPC, t, rpctypes.TokenFieldNameGRPC, "wrong.1"}
	},
	"through a gateway": func(t string) []string {
		return []string{rpctypes.TokenFieldNameGRPC, t, "grpcgateway-accept", "application/json"}
	},
	"cut": func(t string) []string { return []string{rpctypes.TokenFieldNameGRPC, t[:len(t)-3]} },
	"with a letter more": func(t string) []string {
		return []string{rpctypes.TokenFieldNameGRPC, "x" + t}
	},
	"with another index": func(t string) []string {
		return []string{rpctypes.TokenFieldNameGRPC, prefix(t) + ".1"}
	},
	"with an index that is no number": func(t string) []string {
		return []string{rpctypes.TokenFieldNameGRPC, prefix(t) + ".+1"}
	},
	"with two dots": func(t string) []string {
		return []string{rpctypes.TokenFieldNameGRPC, strings.Replace(t, ".", "..", 1)}
	},
}

func prefix(token string) string {
	before, _, _ := strings.Cut(token, ".")
	return before
}

// withoutToken are the presentations of a client that has no token.
var withoutToken = map[string][]string{
	"an empty token":    {rpctypes.TokenFieldNameGRPC, ""},
	"an empty bearer":   {rpctypes.TokenFieldNameSwagger, "Bearer"},
	"by a gateway":      {"grpcgateway-accept", "application/json"},
	"a word":            {rpctypes.TokenFieldNameGRPC, "root"},
	"a name and a dot":  {rpctypes.TokenFieldNameGRPC, "root."},
	"a strange token":   {rpctypes.TokenFieldNameGRPC, "abcdefghijklmnop.1"},
	"an index alone":    {rpctypes.TokenFieldNameGRPC, ".1"},
	"a negative index":  {rpctypes.TokenFieldNameGRPC, "abcdefghijklmnop.-1"},
	"an index too long": {rpctypes.TokenFieldNameGRPC, "abcdefghijklmnop.99999999999999999999"},
	"a long token":      {rpctypes.TokenFieldNameGRPC, strings.Repeat("a", 4096) + ".1"},
}

// identify returns the context of a call with the token that it presents on this side, if it has
// one.
func (r *running) identify(ctx context.Context, c Call) context.Context {
	if pairs, ok := withoutToken[c.Presented]; ok {
		return metadata.AppendToOutgoingContext(ctx, pairs...)
	}
	token := c.Token
	if issued := r.tokens[c.User]; token == "" && len(issued) > 0 {
		token = issued[max(len(issued)-1-c.Earlier, 0)]
	}
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, presentations[c.Presented](token)...)
}

// keepToken keeps the token of a user who has logged in.
func (r *running) keepToken(c Call, reply Reply) {
	if login, ok := reply.Message.(*pb.AuthenticateResponse); ok {
		if r.tokens == nil {
			r.tokens = map[string][]string{}
		}
		name := c.Request.(*pb.AuthenticateRequest).Name
		r.tokens[name] = append(r.tokens[name], login.Token)
	}
}

// signer signs tokens with the key of the servers.
type signer struct {
	method  string // HS256 or RS256
	secret  []byte // of HS256
	private *rsa.PrivateKey
	public  []byte // of private, in PEM
	file    string // has the key
}

// newSigners returns a signer for each of the methods, whose keys are in files in dir.
func newSigners(dir string) (signers []*signer, err error) {
	for _, method := range []string{"HS256", "RS256"} {
		s, err := newSigner(method)
		if err != nil {
			return nil, fmt.Errorf("differ: %w", err)
		}
		s.file = filepath.Join(dir, method+".key")
		content := s.secret
		if s.private != nil {
			content = pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(s.private)})
		}
		if err := os.WriteFile(s.file, content, 0o600); err != nil {
			return nil, fmt.Errorf("differ: %w", err)
		}
		signers = append(signers, s)
	}
	return signers, nil
}

// newSigner returns a signer with a new key.
func newSigner(method string) (*signer, error) {
	if method == "HS256" {
		return &signer{method: method, secret: []byte(rand.Text())}, nil
	}
	const bits = 2048
	private, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return nil, err
	}
	return &signer{method: method, private: private, public: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}, nil
}

// args are the flags of servers that issue tokens like those of the signer.
func (s *signer) args() []string {
	return []string{fmt.Sprintf("--auth-token=jwt,sign-method=%s,priv-key=%s,ttl=%s", s.method, s.file, jwtTTL)}
}

// sign returns the signature of the first two parts of a token.
func (s *signer) sign(text string) []byte {
	if s.private == nil {
		return sum(sha256.New, s.secret, text)
	}
	digest := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.private, crypto.SHA256, digest[:])
	if err != nil {
		panic(err) // the key is large enough for the hash
	}
	return signature
}

func sum(of func() hash.Hash, secret []byte, text string) []byte {
	h := hmac.New(of, secret)
	h.Write([]byte(text)) // never fails
	return h.Sum(nil)
}

// claims are those of a token.
type claims map[string]any

// part encodes a part of a token.
func part(of map[string]any) string {
	text, err := json.Marshal(of)
	if err != nil {
		panic(err) // it has texts and numbers only
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

// token returns a token that names a method, with a signature.
func token(method string, c claims, sign func(string) []byte) string {
	text := part(map[string]any{"alg": method, "typ": "JWT"}) + "." + part(c)
	return text + "." + base64.RawURLEncoding.EncodeToString(sign(text))
}

// good returns the claims of a valid token.
func good(user string, revision uint64) claims {
	return claims{"username": user, "revision": revision, "exp": time.Now().Add(jwtTTL).Unix()}
}

// forgery is a signed token that no server has issued.
type forgery struct {
	name string
	make func(s *signer, user string, revision uint64) string
}

// with returns a forgery with the servers' key, whose claims are changed.
func with(name string, change func(claims)) forgery {
	return forgery{name, func(s *signer, user string, revision uint64) string {
		c := good(user, revision)
		change(c)
		return token(s.method, c, s.sign)
	}}
}

// forgeries lists the tokens that sequences make. Revisions below zero, and those that no integer
// can have, are left out: what etcd makes of them depends on the processor.
var forgeries = []forgery{
	with("nothing changed", func(claims) {}),
	with("expired", func(c claims) { c["exp"] = time.Now().Add(-time.Minute).Unix() }),
	with("not valid yet", func(c claims) { c["nbf"] = time.Now().Add(time.Hour).Unix() }),
	with("issued in the future", func(c claims) { c["iat"] = time.Now().Add(time.Hour).Unix() }),
	with("never expires", func(c claims) { delete(c, "exp") }),
	with("expires at a text", func(c claims) { c["exp"] = "later" }),
	with("an older revision", func(c claims) { c["revision"] = c["revision"].(uint64) - 1 }),
	with("revision 0", func(c claims) { c["revision"] = 0 }),
	with("a later revision", func(c claims) { c["revision"] = c["revision"].(uint64) + 1000 }),
	with("a fraction of a revision", func(c claims) { c["revision"] = float64(c["revision"].(uint64)) - 0.5 }),
	with("a revision that is a text", func(c claims) { c["revision"] = fmt.Sprint(c["revision"]) }),
	with("no revision", func(c claims) { delete(c, "revision") }),
	with("no user", func(c claims) { delete(c, "username") }),
	with("a user that is a number", func(c claims) { c["username"] = 1 }),
	with("an empty user", func(c claims) { c["username"] = "" }),
	with("a user that does not exist", func(c claims) { c["username"] = "eve" }),
	with("more claims", func(c claims) { c["sub"], c["aud"], c["iss"] = "a", []string{"b"}, "c" }),
	{"no method and no signature", func(_ *signer, user string, revision uint64) string {
		return token("none", good(user, revision), func(string) []byte { return nil })
	}},
	{"method None", func(_ *signer, user string, revision uint64) string {
		return token("None", good(user, revision), func(string) []byte { return nil })
	}},
	{"the method of the servers without a signature", func(s *signer, user string, revision uint64) string {
		return token(s.method, good(user, revision), func(string) []byte { return nil })
	}},
	{"another method with the same key", func(s *signer, user string, revision uint64) string {
		if s.private != nil { // the public key as the secret of a symmetric method
			return token("HS256", good(user, revision), func(text string) []byte { return sum(sha256.New, s.public, text) })
		}
		return token("HS512", good(user, revision), func(text string) []byte { return sum(sha512.New, s.secret, text) })
	}},
	{"another key", func(s *signer, user string, revision uint64) string {
		other := &signer{method: "HS256", secret: []byte("another secret")}
		return token(s.method, good(user, revision), other.sign)
	}},
	{"the signature of other claims", func(s *signer, user string, revision uint64) string {
		parts := strings.Split(token(s.method, good("dan", revision), s.sign), ".")
		return parts[0] + "." + part(good(user, revision)) + "." + parts[2]
	}},
	{"two parts", func(s *signer, user string, revision uint64) string {
		t := token(s.method, good(user, revision), s.sign)
		return t[:strings.LastIndexByte(t, '.')]
	}},
	{"four parts", func(s *signer, user string, revision uint64) string {
		return token(s.method, good(user, revision), s.sign) + ".x"
	}},
	{"no base64", func(s *signer, user string, revision uint64) string {
		return "!" + token(s.method, good(user, revision), s.sign)
	}},
	{"no JSON", func(s *signer, _ string, _ uint64) string {
		text := base64.RawURLEncoding.EncodeToString([]byte("{")) + "." + base64.RawURLEncoding.EncodeToString([]byte("{"))
		return text + "." + base64.RawURLEncoding.EncodeToString(s.sign(text))
	}},
}

var simpleToken = regexp.MustCompile(`^[A-Za-z0-9]{16,}\.[1-9][0-9]*$`)

// exemptToken replaces a simple token, and the time and signature of a signed one.
func exemptToken(_ identity, m proto.Message) {
	login, ok := m.(*pb.AuthenticateResponse)
	switch {
	case !ok:
	case simpleToken.MatchString(login.Token):
		login.Token = "token"
	default:
		if text, err := readToken(login.Token, time.Now()); err == nil {
			login.Token = text
		}
	}
}

// readToken returns what a signed token says, but for the time at which it expires, which must be
// jwtTTL from now, or up to a minute earlier.
func readToken(token string, now time.Time) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || parts[2] == "" {
		return "", errors.New("a signed token has three parts")
	}
	var header, claims map[string]any
	for i, into := range []*map[string]any{&header, &claims} {
		text, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return "", err
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		if err := d.Decode(into); err != nil {
			return "", err
		}
	}
	expires, ok := claims["exp"].(json.Number)
	if !ok {
		return "", errors.New("a signed token expires")
	}
	seconds, err := expires.Int64()
	if err != nil {
		return "", err
	}
	if left := time.Unix(seconds, 0).Sub(now); left > jwtTTL || left < jwtTTL-time.Minute {
		return "", fmt.Errorf("the token expires in %v", left)
	}
	claims["exp"] = "in time"
	return fmt.Sprint(header, claims), nil
}
