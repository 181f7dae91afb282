package flood

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// wire is an HTTP/2 connection that writes its own frames. Unlike a gRPC client it can
// reset a stream at a chosen moment and never update a window. It reads all frames and
// answers pings and settings, as the protocol requires.
type wire struct {
	conn   net.Conn
	ended  func(error) // called by the reading goroutine when the server ends a stream or the connection
	reader sync.WaitGroup

	mu      sync.Mutex // guards what follows
	framer  *http2.Framer
	encoder *hpack.Encoder
	headers bytes.Buffer // encoder's output
	next    uint32       // stream ID
	failed  error        // of the reading goroutine
}

// ioTimeout is the timeout of a write.
const ioTimeout = 30 * time.Second

// dialWire opens a connection.
func dialWire(ctx context.Context, endpoint string, ended func(error)) (*wire, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", endpoint)
	if err != nil {
		return nil, fmt.Errorf("flood: %w", err)
	}
	w := &wire{conn: conn, ended: ended, framer: http2.NewFramer(conn, conn), next: 1}
	w.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	w.encoder = hpack.NewEncoder(&w.headers)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, errors.Join(fmt.Errorf("flood: %w", err), conn.Close())
	}
	if err := w.framer.WriteSettings(); err != nil {
		return nil, errors.Join(fmt.Errorf("flood: %w", err), conn.Close())
	}
	w.reader.Go(w.read)
	return w, nil
}

// call sends a unary request. With reset it resets the stream at once.
func (w *wire) call(method string, body []byte, reset bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil {
		return w.failed
	}
	stream := w.next
	w.next += 2
	w.headers.Reset()
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method},
		{Name: ":authority", Value: w.conn.RemoteAddr().String()},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	} {
		if err := w.encoder.WriteField(f); err != nil {
			return fmt.Errorf("flood: %w", err)
		}
	}
	if err := w.conn.SetWriteDeadline(time.Now().Add(ioTimeout)); err != nil {
		return fmt.Errorf("flood: %w", err)
	}
	err := w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: w.headers.Bytes(), EndHeaders: true})
	if err == nil {
		err = w.framer.WriteData(stream, true, body)
	}
	if err == nil && reset {
		err = w.framer.WriteRSTStream(stream, http2.ErrCodeCancel)
	}
	if err != nil {
		return fmt.Errorf("flood: %w", err)
	}
	return nil
}

// read processes frames until the connection ends. It never updates a window.
func (w *wire) read() {
	for {
		frame, err := w.framer.ReadFrame()
		if err == nil {
			err = w.take(frame)
		}
		if err != nil {
			w.mu.Lock()
			w.failed = fmt.Errorf("flood: the connection ended: %w", err)
			w.mu.Unlock()
			w.ended(w.failed)
			return
		}
	}
}

func (w *wire) take(frame http2.Frame) error {
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.framer.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.framer.WritePing(true, f.Data)
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server sent GOAWAY: %v %s", f.ErrCode, f.DebugData())
	case *http2.RSTStreamFrame:
		w.ended(status.Errorf(codes.Unavailable, "the server reset the stream: %v", f.ErrCode))
	case *http2.MetaHeadersFrame:
		if f.StreamEnded() {
			w.ended(trailer(f))
		}
	}
	return nil
}

// trailer is the status at the end of a response.
func trailer(f *http2.MetaHeadersFrame) error {
	code, message := codes.Unknown, ""
	for _, h := range f.Fields {
		switch h.Name {
		case "grpc-status":
			if n, err := strconv.ParseUint(h.Value, 10, 32); err == nil {
				code = codes.Code(n)
			}
		case "grpc-message":
			message = h.Value
		}
	}
	return status.Error(code, message)
}

// close closes the connection and waits for the reading goroutine.
func (w *wire) close() {
	_ = w.conn.Close() // its error does not matter any more
	w.reader.Wait()
}

// message returns a request for all keys in gRPC's framing: a byte for no compression,
// and the length, before it.
func message() ([]byte, error) {
	b, err := proto.Marshal(&pb.RangeRequest{Key: first, RangeEnd: last})
	if err != nil {
		return nil, fmt.Errorf("flood: %w", err)
	}
	framed := append([]byte{0}, binary.BigEndian.AppendUint32(nil, uint32(len(b)))...)
	return append(framed, b...), nil
}

// reset sends requests for all keys, and resets each stream right after the request.
func reset(ctx context.Context, m Mode, endpoint string) (Outcome, error) {
	body, err := message()
	if err != nil {
		return Outcome{}, err
	}
	return runClients(ctx, m, func(ctx context.Context, i int) (o Outcome, err error) {
		c := redialer{endpoint: endpoint, ended: func(error) {}}
		defer c.close()
		share := m.Requests / m.Clients
		if i < m.Requests%m.Clients {
			share++
		}
		for o.Sent < share && ctx.Err() == nil {
			if err := c.call(ctx, body, true, &o); err != nil {
				return o, err
			}
		}
		return o, nil
	})
}

// retryAfter is how long a client of neverRead waits before the next request if the
// server has ended the previous one.
const retryAfter = time.Second

// neverRead requests all keys and never updates the window for the answer, for the
// mode's length. If the server ends a request, the client sends another one.
func neverRead(ctx context.Context, m Mode, endpoint string) (Outcome, error) {
	body, err := message()
	if err != nil {
		return Outcome{}, err
	}
	deadline := time.Now().Add(m.Length)
	return runClients(ctx, m, func(ctx context.Context, _ int) (o Outcome, _ error) {
		ended := make(chan error, 1)
		c := redialer{endpoint: endpoint, ended: func(err error) {
			select {
			case ended <- err:
			default: // the end of a connection whose request has ended already
			}
		}}
		defer c.close()
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		for ctx.Err() == nil && time.Now().Before(deadline) {
			failed := o.Failed
			if err := c.call(ctx, body, false, &o); err != nil {
				return o, err
			}
			if o.Failed == failed {
				select {
				case err := <-ended:
					o.count(err)
				case <-timer.C:
					return o, nil
				case <-ctx.Done():
					return o, nil
				}
			}
			_ = loadgen.Pause(ctx, retryAfter) // the loop checks the context
		}
		return o, nil
	})
}

// redialer is a wire that reconnects after a failure.
type redialer struct {
	endpoint string
	ended    func(error)
	wire     *wire // nil while there is none
}

// call sends a request for all keys and counts it in o. If the connection has ended, it
// also counts it as failed. The only error is that of dialling.
func (c *redialer) call(ctx context.Context, body []byte, reset bool, o *Outcome) (err error) {
	if c.wire == nil {
		if c.wire, err = dialWire(ctx, c.endpoint, c.ended); err != nil {
			return err
		}
	}
	o.Sent++
	if err := c.wire.call(pb.KV_Range_FullMethodName, body, reset); err != nil {
		o.count(err)
		c.close()
	}
	return nil
}

func (c *redialer) close() {
	if c.wire != nil {
		c.wire.close()
		c.wire = nil
	}
}
