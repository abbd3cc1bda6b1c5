"""Write TensorFlow checkpoints in the V2 format, implemented from TensorFlow's sources for tests of the reader."""

import struct

import google_crc32c

MAGIC = 0xDB4775248B80FB57
DTYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "float16": 19}


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def masked(content):
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def field(number, wire, payload):
    return varint(number << 3 | wire) + payload


def message(number, payload):
    return field(number, 2, varint(len(payload)) + payload)


def entry(array, offset, dtype=None):
    shape = b"".join(message(2, field(1, 0, varint(size))) for size in array.shape)
    return (
        field(1, 0, varint(dtype or DTYPES[array.dtype.name]))
        + message(2, shape)
        + field(4, 0, varint(offset))
        + field(5, 0, varint(array.nbytes))
        + field(6, 5, struct.pack("<I", masked(array.tobytes())))
    )


def block(entries, restart_every=16):
    """Encode a block: entries that share prefixes with the previous key, and the offsets at which sharing restarts."""
    out, restarts, before = bytearray(), [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % restart_every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(before), len(key)) and before[shared] == key[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return (
        bytes(out) + b"".join(struct.pack("<I", at) for at in restarts or [0]) + struct.pack("<I", len(restarts or [0]))
    )


def write_bundle(prefix, arrays, *, per_block=7, compression=0, shards=1, **entry_options):
    """Write `prefix.index`, which names `shards` data files, and `prefix.data-00000-of-00001`; return the prefix."""
    data, items = bytearray(), [(b"", field(1, 0, varint(shards)))]
    for name in sorted(arrays):
        items.append((name.encode(), entry(arrays[name], len(data), **entry_options)))
        data += arrays[name].tobytes()
    chunks = [block(items[at : at + per_block]) for at in range(0, len(items), per_block)]
    keys = [items[min(at + per_block, len(items)) - 1][0] for at in range(0, len(items), per_block)]
    prefix.with_name(prefix.name + ".index").write_bytes(table(zip(keys, chunks, strict=True), compression))
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)
    return prefix


def table(blocks, compression=0, repeat=1):
    """Encode a LevelDB table of (last key, block) pairs; the index names each block `repeat` times."""
    file = bytearray()

    def put(content):
        handle = varint(len(file)) + varint(len(content))
        kind = bytes([compression])
        file.extend(content + kind + struct.pack("<I", masked(content + kind)))
        return handle

    index = [(key, put(content)) for key, content in blocks]
    meta, root = put(block([])), put(block(index * repeat))
    file += (meta + root).ljust(40, b"\0") + struct.pack("<Q", MAGIC)
    return bytes(file)
