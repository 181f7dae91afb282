package peer

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec of all other messages
	"google.golang.org/grpc/mem"

	"github.com/troupe-db/troupe/proto/peerpb"
)

// outFrame is a frame to send. Its encoding reports the size.
type outFrame struct {
	*peerpb.Frame
	size int // set by the codec
}

// inFrame is a received frame.
type inFrame struct {
	peerpb.Frame
	size int // set by the codec
}

// codec encodes frames, and passes all other messages to gRPC's own codec.
type codec struct{ other encoding.CodecV2 }

var frames = codec{encoding.GetCodecV2("proto")}

// Name implements encoding.CodecV2. Frames are protobuf on the wire.
func (codec) Name() string { return "proto" }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*outFrame)
	if !ok {
		return c.other.Marshal(v)
	}
	b, size, err := encodeFrame(f.Frame)
	if err != nil {
		return nil, fmt.Errorf("peer: encode a frame: %w", err)
	}
	f.size = size
	return b, nil
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*inFrame)
	if !ok {
		return c.other.Unmarshal(data, v)
	}
	f.size = data.Len()
	if err := decodeFrame(data.Materialize(), &f.Frame); err != nil {
		return fmt.Errorf("peer: decode a frame: %w", err)
	}
	return nil
}
