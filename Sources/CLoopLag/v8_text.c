/* V8's strings as UTF-8, and positions in a script as lines. Runs on the watchdog (on memory that the host may be
 * changing: every read is fault-proof, every length bounded) and inside an interrupt on the loop thread. It takes no
 * lock and allocates nothing.
 */
#include "internal.h"

#include <string.h>

LAG_SMALL_CODE_BEGIN

enum { MAX_NESTING = 8, MAX_SOURCE = 16 << 20 };

static bool word(uint64_t address, uint64_t *value) { return lag_safe_read(address, value, 8) == 8; }

/* A flat run of characters. */
struct flat {
    uint64_t characters;
    uint32_t length;
    bool is_wide;
};

struct shape {
    uint32_t type, length;
    uint64_t fields[4];
};

static bool read_shape(const struct lag_v8_layout *v8, uint64_t tagged, struct shape *shape) {
    if ((tagged & 3) != 1) return false;
    uint8_t head[32];
    if (lag_safe_read(tagged - 1, head, sizeof head) < 24) return false;
    memcpy(shape->fields, head, sizeof head);
    uint64_t map = shape->fields[0];
    if ((map & 3) == 0 && map != 0) { /* moved by a collection that is running */
        tagged = map + 1;
        if (lag_safe_read(tagged - 1, head, sizeof head) < 24) return false;
        memcpy(shape->fields, head, sizeof head);
        map = shape->fields[0];
    }
    if ((map & 3) != 1) return false;
    uint16_t type;
    if (lag_safe_read(map - 1 + (uint64_t)v8->map_instance_type, &type, 2) != 2) return false;
    if ((type & v8->not_string_mask) != 0) return false;
    shape->type = type;
    memcpy(&shape->length, head + (v8->string_length & 31 & ~3), 4);
    return true;
}

/* Follows thin strings, slices and flattened ropes to the characters; at most `rest` further ropes are entered. */
static bool flatten(const struct lag_v8_layout *v8, uint64_t tagged, struct flat *flat) {
    uint64_t skipped = 0;
    uint32_t wanted = UINT32_MAX;
    for (int i = 0; i < MAX_NESTING; i++) {
        struct shape shape;
        if (!read_shape(v8, tagged, &shape)) return false;
        if (wanted == UINT32_MAX) wanted = shape.length;
        int32_t representation = (int32_t)shape.type & v8->representation_mask;
        if (representation == v8->thin) {
            if (!word(tagged - 1 + (uint64_t)v8->thin_actual, &tagged)) return false;
        } else if (representation == v8->sliced) {
            uint64_t offset;
            if (!word(tagged - 1 + (uint64_t)v8->sliced_offset, &offset)) return false;
            skipped += offset >> 32;
            if (!word(tagged - 1 + (uint64_t)v8->sliced_parent, &tagged)) return false;
        } else if (representation == v8->cons) {
            uint64_t first, second;
            struct shape rest;
            if (!word(tagged - 1 + (uint64_t)v8->cons_first, &first) ||
                !word(tagged - 1 + (uint64_t)v8->cons_second, &second))
                return false;
            if (!read_shape(v8, second, &rest) || rest.length != 0) return false;
            tagged = first;
        } else {
            uint64_t start = tagged - 1 + (uint64_t)v8->string_chars;
            if (representation == v8->external) {
                /* Behind the resource lies its data, unless the string is of the kind that does not cache it. */
                if ((shape.type & 0x10) != 0) return false;
                if (!word(tagged - 1 + (uint64_t)v8->external_resource + 8, &start) || start == 0) return false;
            } else if (representation != 0) {
                return false;
            }
            flat->is_wide = ((int32_t)shape.type & v8->encoding_mask) != v8->one_byte;
            if (skipped > shape.length || wanted > shape.length - skipped) return false;
            flat->characters = start + skipped * (flat->is_wide ? 2 : 1);
            flat->length = wanted;
            return true;
        }
    }
    return false;
}

static size_t put(uint32_t point, uint8_t *at, size_t room) {
    if (point < 0x80) {
        if (room < 1) return 0;
        at[0] = (uint8_t)point;
        return 1;
    }
    size_t bytes = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    if (room < bytes) return 0;
    for (size_t i = bytes - 1; i > 0; i--) {
        at[i] = (uint8_t)(0x80 | (point & 0x3f));
        point >>= 6;
    }
    at[0] = (uint8_t)((bytes == 2 ? 0xc0 : bytes == 3 ? 0xe0 : 0xf0) | point);
    return bytes;
}

static size_t write_flat(const struct flat *flat, uint8_t *into, size_t capacity) {
    uint8_t raw[512];
    size_t written = 0, width = flat->is_wide ? 2 : 1, done = 0;
    uint32_t high = 0;
    while (done < flat->length && written < capacity) {
        size_t batch = sizeof raw / width;
        if (batch > flat->length - done) batch = flat->length - done;
        if (lag_safe_read(flat->characters + done * width, raw, batch * width) != batch * width) break;
        for (size_t i = 0; i < batch; i++) {
            uint32_t unit = flat->is_wide ? (uint32_t)(raw[2 * i] | raw[2 * i + 1] << 8) : raw[i];
            if (unit >= 0xd800 && unit < 0xdc00) {
                high = unit;
                continue;
            }
            uint32_t point = unit;
            if (unit >= 0xdc00 && unit < 0xe000)
                point = high != 0 ? 0x10000 + ((high - 0xd800) << 10) + (unit - 0xdc00) : 0xfffd;
            high = 0;
            size_t bytes = put(point, into + written, capacity - written);
            if (bytes == 0) return written;
            written += bytes;
        }
        done += batch;
    }
    return written;
}

static long write_string(const struct lag_v8_layout *v8, uint64_t tagged, uint8_t *into, size_t capacity, int depth) {
    struct flat flat;
    if (flatten(v8, tagged, &flat)) return (long)write_flat(&flat, into, capacity);
    /* A rope: both of its halves, if it is not deep. */
    struct shape shape;
    if (depth >= MAX_NESTING || !read_shape(v8, tagged, &shape)) return -1;
    if (((int32_t)shape.type & v8->representation_mask) != v8->cons) return -1;
    uint64_t first, second;
    if (!word(tagged - 1 + (uint64_t)v8->cons_first, &first) || !word(tagged - 1 + (uint64_t)v8->cons_second, &second))
        return -1;
    long left = write_string(v8, first, into, capacity, depth + 1);
    if (left < 0) return -1;
    long right = write_string(v8, second, into + left, capacity - (size_t)left, depth + 1);
    return right < 0 ? left : left + right;
}

long lag_v8_string(uint64_t tagged, uint8_t *into, size_t capacity) {
    const struct lag_v8_layout *v8 = lag_v8_layout();
    return v8 != NULL ? write_string(v8, tagged, into, capacity, 0) : -1;
}

int lag_v8_property_name(uint64_t tagged) {
    uint8_t text[16];
    long n = lag_v8_string(tagged, text, sizeof text);
    if (n == 3 && memcmp(text, "url", 3) == 0) return LAG_V8_URL;
    if (n == 11 && memcmp(text, "originalUrl", 11) == 0) return LAG_V8_ORIGINAL_URL;
    if (n == 6 && memcmp(text, "method", 6) == 0) return LAG_V8_METHOD;
    return 0;
}

bool lag_v8_line(uint64_t source, uint64_t position, uint32_t *line, uint32_t *column) {
    const struct lag_v8_layout *v8 = lag_v8_layout();
    struct flat flat;
    if (v8 == NULL || !flatten(v8, source, &flat) || position > flat.length || position > MAX_SOURCE) return false;
    uint8_t raw[4096];
    size_t width = flat.is_wide ? 2 : 1;
    uint64_t done = 0, start = 0;
    uint32_t lines = 1;
    bool after_return = false;
    while (done < position) {
        size_t batch = sizeof raw / width;
        if (batch > position - done) batch = (size_t)(position - done);
        if (lag_safe_read(flat.characters + done * width, raw, batch * width) != batch * width) return false;
        for (size_t i = 0; i < batch; i++) {
            uint32_t unit = flat.is_wide ? (uint32_t)(raw[2 * i] | raw[2 * i + 1] << 8) : raw[i];
            if (LAG_LIKELY(unit != '\n' && unit != '\r' && unit != 0x2028 && unit != 0x2029)) {
                after_return = false;
                continue;
            }
            if (!(unit == '\n' && after_return)) lines += 1;
            start = done + i + 1;
            after_return = unit == '\r';
        }
        done += batch;
    }
    *line = lines;
    *column = (uint32_t)(position - start) + 1;
    return true;
}

LAG_SMALL_CODE_END
