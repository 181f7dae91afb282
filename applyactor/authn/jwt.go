package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/troupe-db/troupe/applyactor/auth"
)

// Errors of JWTs, in etcd's words.
var (
	errSignMethod  = errors.New("auth: invalid auth signature method")
	errMissingKey  = errors.New("auth: missing key data")
	errKeyMismatch = errors.New("auth: public and private keys don't match")
	// ErrVerifyOnly: there is no key to sign tokens with.
	ErrVerifyOnly = errors.New("auth: token signing attempted with verify-only key")
)

// DefaultJWTTTL is how long a JWT is valid by default, as in etcd.
const DefaultJWTTTL = 5 * time.Minute

// JWTConfig configures JWTs.
type JWTConfig struct {
	// Method is the algorithm of the signature, such as RS256.
	Method string
	// PublicKey and PrivateKey are in PEM format. With a public key alone, tokens are verified,
	// but none is issued. For HMAC the private key is the secret, in any format.
	PublicKey, PrivateKey []byte
	// TTL is how long a token is valid.
	TTL time.Duration
	// Now is the clock of the process.
	Now func() time.Time
}

// JWT issues and verifies JWTs. It is safe for concurrent use.
type JWT struct {
	cfg          JWTConfig
	method       jwt.SigningMethod
	sign, verify any // keys; sign is nil if there is none
	parser       *jwt.Parser
}

// NewJWT returns a JWT. Errors are those of its configuration.
func NewJWT(cfg JWTConfig) (*JWT, error) {
	j := &JWT{cfg: cfg, method: jwt.GetSigningMethod(cfg.Method)}
	var err error
	switch j.method.(type) {
	case *jwt.SigningMethodHMAC:
		if len(cfg.PrivateKey) == 0 {
			return nil, errMissingKey
		}
		j.sign, j.verify = cfg.PrivateKey, cfg.PrivateKey
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		err = keys(j, jwt.ParseRSAPrivateKeyFromPEM, jwt.ParseRSAPublicKeyFromPEM)
	case *jwt.SigningMethodECDSA:
		err = keys(j, jwt.ParseECPrivateKeyFromPEM, jwt.ParseECPublicKeyFromPEM)
	case *jwt.SigningMethodEd25519:
		err = keys(j, parseEdPrivate, parseEdPublic)
	default: // "none" and unknown names
		return nil, errSignMethod
	}
	if err != nil {
		return nil, err
	}
	// Any other algorithm is refused, above all "none", and HMAC with a public key as the secret.
	j.parser = jwt.NewParser(jwt.WithValidMethods([]string{j.method.Alg()}), jwt.WithTimeFunc(cfg.Now), jwt.WithStrictDecoding())
	return j, nil
}

func parseEdPrivate(pem []byte) (ed25519.PrivateKey, error) {
	key, err := jwt.ParseEdPrivateKeyFromPEM(pem)
	if err != nil {
		return nil, err
	}
	return key.(ed25519.PrivateKey), nil // nothing else is parsed
}

func parseEdPublic(pem []byte) (ed25519.PublicKey, error) {
	key, err := jwt.ParseEdPublicKeyFromPEM(pem)
	if err != nil {
		return nil, err
	}
	return key.(ed25519.PublicKey), nil // nothing else is parsed
}

// keys sets the keys of an asymmetric algorithm. If both are given they must belong together.
func keys[Private interface{ Public() crypto.PublicKey }, Public interface{ Equal(crypto.PublicKey) bool }](
	j *JWT, private func([]byte) (Private, error), public func([]byte) (Public, error)) error {
	if len(j.cfg.PrivateKey) > 0 {
		key, err := private(j.cfg.PrivateKey)
		if err != nil {
			return fmt.Errorf("auth: private key: %w", err)
		}
		j.sign, j.verify = key, key.Public()
	}
	if len(j.cfg.PublicKey) > 0 {
		key, err := public(j.cfg.PublicKey)
		if err != nil {
			return fmt.Errorf("auth: public key: %w", err)
		}
		if j.verify != nil && !key.Equal(j.verify) {
			return errKeyMismatch
		}
		j.verify = key
	}
	if j.verify == nil {
		return errMissingKey
	}
	return nil
}

// The keys of the asymmetric algorithms.
var (
	_ interface{ Equal(crypto.PublicKey) bool } = (*rsa.PublicKey)(nil)
	_ interface{ Equal(crypto.PublicKey) bool } = (*ecdsa.PublicKey)(nil)
	_ interface{ Equal(crypto.PublicKey) bool } = ed25519.PublicKey(nil)
)

// Names of the claims, as in etcd.
const (
	claimUser     = "username"
	claimRevision = "revision"
	claimExpires  = "exp"
)

// Sign returns a token. Error: ErrVerifyOnly.
func (j *JWT) Sign(id auth.Identity) (string, error) {
	if j.sign == nil {
		return "", ErrVerifyOnly
	}
	claims := jwt.MapClaims{claimUser: id.User, claimRevision: id.Revision, claimExpires: j.cfg.Now().Add(j.cfg.TTL).Unix()}
	return jwt.NewWithClaims(j.method, claims).SignedString(j.sign)
}

// Verify returns whom a token was issued to; ok is false if it is not valid.
func (j *JWT) Verify(token string) (id auth.Identity, ok bool) {
	parsed, err := j.parser.Parse(token, func(*jwt.Token) (any, error) { return j.verify, nil })
	if err != nil {
		return id, false
	}
	claims, _ := parsed.Claims.(jwt.MapClaims)
	user, ok1 := claims[claimUser].(string)
	revision, ok2 := claims[claimRevision].(float64)
	if !ok1 || !ok2 || revision <= -1 { // fractions are cut, as in etcd
		return id, false
	}
	return auth.Identity{User: user, Revision: uint64(revision)}, true
}
