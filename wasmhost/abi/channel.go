package abi

// Channel is the serializer of channels, which is no user's: values stay what they were in Python.
const Channel = "channel"

// Part is a value as a table has it: its bytes, and whether they are JSON. Nil Bytes are None.
type Part struct {
	JSON  bool
	Bytes []byte
}

// AppendPart appends a part as an item of a channel.
func AppendPart(dst []byte, p Part) []byte {
	kind := byte(ChannelRaw)
	if p.JSON {
		kind = ChannelJSON
	}
	return append(append(dst, kind), p.Bytes...)
}

// AppendJoined appends a join's result as an item of a channel.
func AppendJoined(dst []byte, change byte, left, right, rightKey Part) []byte {
	dst = append(dst, ChannelJoined, change)
	for _, p := range []Part{left, right, rightKey} {
		if p.Bytes == nil {
			dst = le.AppendUint32(dst, ^uint32(0))
			continue
		}
		dst = le.AppendUint32(dst, uint32(len(p.Bytes)+1))
		dst = AppendPart(dst, p)
	}
	return dst
}
