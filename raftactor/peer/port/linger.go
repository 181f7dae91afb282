package port

import (
	"io"
	"net"
	"time"
)

const (
	// lingerTimeout is enough for what the other side has sent before it could know better.
	lingerTimeout = 500 * time.Millisecond
	// lingerBytesMax bounds that: it is some of the first bytes of a connection.
	lingerBytesMax = 64 << 10
)

// Linger ends the sending half of a connection, and discards what still arrives for a moment.
// A connection that is closed with unread bytes is reset, and the other side may then never see
// what was sent to it last, which says why. The caller closes the connection.
func Linger(c net.Conn) {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(lingerTimeout)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c, lingerBytesMax) // how it ends does not matter
}
