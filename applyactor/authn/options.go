package authn

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Kind is a kind of tokens.
type Kind int

// Kinds of tokens.
const (
	// Simple tokens are random. Members have them in memory.
	Simple Kind = iota
	// Signed tokens are JWTs.
	Signed
	// NoTokens: nobody can log in.
	NoTokens
)

var errOptions = errors.New("auth: invalid auth options")

// Names of the options of JWTs, as in etcd.
const (
	optionMethod  = "sign-method"
	optionPublic  = "pub-key"
	optionPrivate = "priv-key"
	optionTTL     = "ttl"
)

// ParseTokens parses the value of --auth-token: "simple", "jwt,<option>=<value>,..." or nothing. It
// reads the files of keys with read. For JWTs it returns their configuration without a clock, and
// the names of options that are not known.
func ParseTokens(value string, read func(path string) ([]byte, error)) (kind Kind, cfg JWTConfig, unknown []string, err error) {
	name, rest, _ := strings.Cut(value, ",")
	options, err := parseOptions(rest)
	if err != nil {
		return 0, cfg, nil, err
	}
	switch name {
	case "":
		return NoTokens, cfg, nil, nil
	case "simple":
		return Simple, cfg, nil, nil
	case "jwt":
	default:
		return 0, cfg, nil, fmt.Errorf("%w: unknown kind of token %q", errOptions, name)
	}
	cfg = JWTConfig{Method: options[optionMethod], TTL: DefaultJWTTTL}
	for option, value := range options {
		if value == "" {
			continue
		}
		switch option {
		case optionMethod:
		case optionTTL:
			cfg.TTL, err = time.ParseDuration(value)
		case optionPublic:
			cfg.PublicKey, err = read(value)
		case optionPrivate:
			cfg.PrivateKey, err = read(value)
		default:
			unknown = append(unknown, option)
		}
		if err != nil {
			return 0, cfg, nil, fmt.Errorf("%w: %s: %w", errOptions, option, err)
		}
	}
	return Signed, cfg, unknown, nil
}

func parseOptions(list string) (map[string]string, error) {
	options := map[string]string{}
	if list == "" {
		return options, nil
	}
	for option := range strings.SplitSeq(list, ",") {
		parts := strings.Split(option, "=")
		if len(parts) != 2 {
			return nil, fmt.Errorf("%w: %q is not <option>=<value>", errOptions, parts[0])
		}
		if _, twice := options[parts[0]]; twice {
			return nil, fmt.Errorf("%w: %s is given twice", errOptions, parts[0])
		}
		options[parts[0]] = parts[1]
	}
	return options, nil
}
