"""Copies an ELF object and changes constants that it exports: a V8 with a layout that nobody has seen.

    lying_exports.py OBJECT COPY NAME=VALUE...

NAME is an exported 32-bit constant; VALUE a number, or the NAME of another one whose value it then has.
"""
import struct
import sys

source, copy, *changes = sys.argv[1:]
data = bytearray(open(source, "rb").read())
table, entry, count = struct.unpack_from("<Q", data, 0x28)[0], *struct.unpack_from("<HH", data, 0x3A)
sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry) for i in range(count)]
places = {}
for _, kind, _, _, offset, size, link, *_ in sections:
    if kind != 11:  # SHT_DYNSYM
        continue
    names = sections[link][4]
    for at in range(offset, offset + size, 24):
        name, _, _, _, address, _ = struct.unpack_from("<IBBHQQ", data, at)
        end = data.index(0, names + name)
        places[data[names + name : end].decode()] = address


def offset_of(name):
    for _, kind, _, address, offset, size, *_ in sections:
        if kind == 1 and address <= places[name] < address + size:  # SHT_PROGBITS
            return places[name] - address + offset
    raise SystemExit(f"{name} is no constant")


values = {}
for change in changes:
    name, value = change.split("=")
    values[name] = int(value) if value.lstrip("-").isdigit() else struct.unpack_from("<i", data, offset_of(value))[0]
for name, value in values.items():
    struct.pack_into("<i", data, offset_of(name), value)
open(copy, "wb").write(data)
