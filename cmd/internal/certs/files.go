package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
)

// fileBytesMax bounds a file, in bytes. The largest are revocation lists: those of large
// authorities have some megabytes.
const fileBytesMax = 32 << 20

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, fileBytesMax+1))
	if err == nil && len(b) > fileBytesMax {
		err = fmt.Errorf("%s: larger than %d bytes", path, fileBytesMax)
	}
	return b, err
}

var (
	errHalf  = errors.New("a PEM block is incomplete or damaged; the file may be half-written")
	errNoPEM = errors.New("there is no PEM block")
)

var (
	pemBegin = []byte("-----BEGIN")
	pemEnd   = []byte("-----END")
	pemDash  = []byte("--")
)

// blocks decodes a PEM file. Package pem skips what it cannot decode, and so would use the
// first half of a file; this is an error here.
func blocks(b []byte) (found []*pem.Block, err error) {
	rest := b
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		found = append(found, block)
	}
	switch {
	case bytes.Count(b, pemBegin) != len(found), bytes.Count(b, pemEnd) != len(found), bytes.Contains(rest, pemDash):
		return nil, errHalf
	case len(found) == 0:
		return nil, errNoPEM
	}
	return found, nil
}

// parsePair returns the certificate of two PEM files.
func parsePair(cert, key []byte) (*tls.Certificate, error) {
	if _, err := blocks(cert); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if _, err := blocks(key); err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	return &pair, err
}

// loadPair reads a certificate and its key.
func loadPair(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := readFile(certFile)
	if err != nil {
		return nil, err
	}
	key, err := readFile(keyFile)
	if err != nil {
		return nil, err
	}
	pair, err := parsePair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", certFile, keyFile, err)
	}
	return pair, nil
}

// authorities are the certificates of a file, by which others are verified.
type authorities struct {
	pool     *x509.CertPool
	subjects map[string]bool // encoded
}

// parseAuthorities reads certificates in PEM.
func parseAuthorities(b []byte) (*authorities, error) {
	all, err := blocks(b)
	if err != nil {
		return nil, err
	}
	a := &authorities{pool: x509.NewCertPool(), subjects: map[string]bool{}}
	for _, block := range all {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		a.pool.AddCert(c)
		a.subjects[string(c.RawSubject)] = true
	}
	return a, nil
}

func loadAuthorities(path string) (*authorities, error) { return load(path, parseAuthorities) }

// load reads and parses a file. Errors name it.
func load[T any](path string, parse func([]byte) (T, error)) (content T, err error) {
	b, err := readFile(path)
	if err != nil {
		return content, err
	}
	if content, err = parse(b); err != nil {
		return content, fmt.Errorf("%s: %w", path, err)
	}
	return content, nil
}
