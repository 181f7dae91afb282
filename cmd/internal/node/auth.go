package node

import (
	cryptorand "crypto/rand"
	"fmt"
	"time"

	"github.com/troupe-db/troupe/authactor"
	"github.com/troupe-db/troupe/authactor/auth"
	"github.com/troupe-db/troupe/grpcgw"
)

// newAuth returns what checks passwords and tokens. The workers are spawned with the edge.
func newAuth(cfg *Config) (grpcgw.AuthConfig, error) {
	passwords := authactor.PasswordsConfig{Cost: cfg.Auth.BcryptCost, Faults: cfg.Faults}
	cryptorand.Read(passwords.Key[:]) // never fails
	a := grpcgw.AuthConfig{
		Passwords:        authactor.NewPasswords(passwords),
		Tokens:           authactor.NewTokens(cfg.Auth.TokenTTL),
		Kind:             cfg.Auth.Tokens,
		CertificateUsers: cfg.Auth.CertificateUsers,
	}
	if a.Kind == authactor.Signed {
		var err error
		cfg.Auth.JWT.Now = time.Now
		if a.JWT, err = authactor.NewJWT(cfg.Auth.JWT); err != nil {
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
