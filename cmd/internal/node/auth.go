package node

import (
	cryptorand "crypto/rand"
	"fmt"
	"time"

	"github.com/troupe-db/troupe/applyactor/auth"
	"github.com/troupe-db/troupe/applyactor/authn"
	"github.com/troupe-db/troupe/grpcgw"
)

// newAuth returns what checks passwords and tokens. The workers are spawned with the edge.
func newAuth(cfg *Config) (grpcgw.AuthConfig, error) {
	passwords := authn.PasswordsConfig{Cost: cfg.Auth.BcryptCost, Faults: cfg.Faults}
	cryptorand.Read(passwords.Key[:]) // never fails
	a := grpcgw.AuthConfig{
		Passwords:        authn.NewPasswords(passwords),
		Tokens:           authn.NewTokens(cfg.Auth.TokenTTL),
		Kind:             cfg.Auth.Tokens,
		CertificateUsers: cfg.Auth.CertificateUsers,
	}
	if a.Kind == authn.Signed {
		var err error
		cfg.Auth.JWT.Now = time.Now
		if a.JWT, err = authn.NewJWT(cfg.Auth.JWT); err != nil {
			return a, fmt.Errorf("node: --auth-token: %w", err)
		}
	}
	return a, nil
}

// authRevision returns the revision of users and roles in the newest view.
func (n *Node) authRevision() uint64 {
	if v := n.shared.Published.View(); v != nil && v.Auth != nil {
		return v.Auth.Revision
	}
	return auth.FirstRevision
}
