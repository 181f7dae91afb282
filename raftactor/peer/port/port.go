// Package port is what the client port and the peer port do alike with a connection before a
// server has it. Each port has several listeners, with TLS and without, and serves several
// protocols on each of them. In the order of a connection:
//
//	Handshake  finishes that of TLS, if the listener has TLS
//	Identify   tells the protocol by the first bytes, which the caller has read ahead
//	Queue      is the listener of the server of a protocol
//
// The client port must also tell gRPC from other HTTP/2, and bounds its connections in another
// way, so the rest differs.
package port

import (
	"crypto/tls"
	"io"
	"net"

	"golang.org/x/net/http2"
)

// Protocol is what a connection begins with.
type Protocol int

// The protocols that Identify tells apart.
const (
	// Unknown is none of the others.
	Unknown Protocol = iota
	// HTTP1 begins with the name of a method, in capital letters.
	HTTP1
	// HTTP2 begins with its preface (RFC 9113, section 3.4), which is the name of no method.
	HTTP2
	// TLS begins with the record of a handshake (RFC 8446, section 5.1).
	TLS
)

const (
	// FirstBytes is how many bytes Identify needs.
	FirstBytes = 3
	// RecordHandshake is the first byte of TLS, and its major version the second one.
	RecordHandshake = 0x16
	recordVersion   = 3
)

// Identify returns the protocol that the first FirstBytes of a connection begin.
func Identify(first []byte) Protocol {
	switch {
	case string(first) == http2.ClientPreface[:FirstBytes]:
		return HTTP2
	case first[0] == RecordHandshake && first[1] == recordVersion:
		return TLS
	}
	for _, b := range first {
		if b < 'A' || b > 'Z' {
			return Unknown
		}
	}
	return HTTP1
}

// secured is a connection of a listener with TLS.
type secured interface {
	// Handshake makes the handshake, and logs why it failed. It is bounded in time.
	Handshake() error
	// TLS returns the state of the session afterwards; nil if the client speaks no TLS, which
	// the listener then permits.
	TLS() *tls.ConnectionState
	// Abort closes the connection without blocking.
	Abort()
}

// Handshake finishes the handshake of a connection and returns its session; nil without TLS. An
// error has been logged, and the caller closes the connection.
func Handshake(c net.Conn) (*tls.ConnectionState, error) {
	s, ok := c.(secured)
	if !ok {
		return nil, nil
	}
	if err := s.Handshake(); err != nil {
		return nil, err
	}
	return s.TLS(), nil
}

// Sever closes a connection at once. Its Close would say so to the other side first, for which it
// may wait.
func Sever(c net.Conn) {
	if s, ok := c.(secured); ok {
		s.Abort()
		return
	}
	_ = c.Close() // there is nobody to return an error to
}

// answerToTLS makes clients say that the server speaks no TLS.
const answerToTLS = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent a TLS handshake to a port without TLS.\n"

// RefuseTLS tells the other side that the listener has no TLS. The caller closes the connection.
func RefuseTLS(c net.Conn) {
	_, _ = io.WriteString(c, answerToTLS) // the other side may be gone
	Linger(c)
}
