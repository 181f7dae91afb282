package mvcc

import (
	"errors"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Field numbers of etcd's mvccpb.KeyValue.
const (
	fieldKey            = 1
	fieldCreateRevision = 2
	fieldModRevision    = 3
	fieldVersion        = 4
	fieldValue          = 5
	fieldLease          = 6
)

// appendKeyValue appends the encoding of an mvccpb.KeyValue. It must be what etcd stores,
// byte for byte, because HashKV covers it: fields in order, zero fields omitted.
func appendKeyValue(dst []byte, key []byte, create, mod, version int64, value []byte, lease int64) []byte {
	dst = appendBytesField(dst, fieldKey, key)
	dst = appendIntField(dst, fieldCreateRevision, create)
	dst = appendIntField(dst, fieldModRevision, mod)
	dst = appendIntField(dst, fieldVersion, version)
	dst = appendBytesField(dst, fieldValue, value)
	return appendIntField(dst, fieldLease, lease)
}

func appendBytesField(dst []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	return protowire.AppendBytes(dst, v)
}

func appendIntField(dst []byte, field protowire.Number, v int64) []byte {
	if v == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, field, protowire.VarintType)
	return protowire.AppendVarint(dst, uint64(v))
}

var errRecord = errors.New("record is not a key-value pair")

// keyValue is a decoded record. key and value share the record's bytes.
type keyValue struct {
	key, value                  []byte
	create, mod, version, lease int64
}

func parseRecord(rec []byte) (kv keyValue, err error) {
	for len(rec) > 0 {
		field, typ, n := protowire.ConsumeTag(rec)
		if n < 0 {
			return kv, errRecord
		}
		rec = rec[n:]
		switch typ {
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(rec)
			if n < 0 || !kv.setBytes(field, v) {
				return kv, errRecord
			}
			rec = rec[n:]
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(rec)
			if n < 0 || !kv.setInt(field, int64(v)) {
				return kv, errRecord
			}
			rec = rec[n:]
		default:
			return kv, errRecord
		}
	}
	if len(kv.key) == 0 {
		return kv, errRecord
	}
	return kv, nil
}

func (kv *keyValue) setBytes(field protowire.Number, v []byte) bool {
	switch field {
	case fieldKey:
		kv.key = v
	case fieldValue:
		kv.value = v
	default:
		return false
	}
	return true
}

func (kv *keyValue) setInt(field protowire.Number, v int64) bool {
	switch field {
	case fieldCreateRevision:
		kv.create = v
	case fieldModRevision:
		kv.mod = v
	case fieldVersion:
		kv.version = v
	case fieldLease:
		kv.lease = v
	default:
		return false
	}
	return true
}

// unmarshalRecord returns a record as a message, which shares no bytes with it.
func unmarshalRecord(rec []byte) (*mvccpb.KeyValue, error) {
	kv := new(mvccpb.KeyValue)
	if err := proto.Unmarshal(rec, kv); err != nil {
		return nil, err
	}
	return kv, nil
}
