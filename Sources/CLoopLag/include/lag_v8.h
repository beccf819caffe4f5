/* What the agent knows of V8 in this process: object layout from the binary's own exports, the isolate of each loop
 * thread, collections as they begin and end, and one interrupt at a time. Part of CLoopLag.h.
 */
#ifndef CLOOPLAG_V8_H
#define CLOOPLAG_V8_H

#include "lag_node.h"
#include "looplag_layout.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lag_capture;

/* Byte offsets into objects, frame slots relative to the frame pointer, instance types: all read from v8dbg_* exports.
 * A type of 0 = this version has no such thing. */
struct lag_v8_layout {
    /* frames */
    int32_t fp_context, fp_function, fp_bytecode_array, fp_bytecode_offset, fp_args;
    int32_t frame_entry, frame_construct_entry, frame_exit, frame_builtin_exit, frame_api_callback_exit,
        frame_api_accessor_exit, frame_last;
    /* objects */
    int32_t tagged_size, smi_shift, tag;
    int32_t map_instance_type, function_shared, shared_name, shared_script, script_name, script_source,
        bytecode_positions, bytecode_wrapper, bytecode_data, fixed_array_length, byte_array_data;
    int32_t scope_locals, scope_first;
    /* types */
    int32_t type_shared, type_script, type_bytecode, type_scope_info, type_byte_array, type_trusted_byte_array,
        type_code, type_code_data_container, type_interpreter_data, type_debug_info;
    int32_t first_context, last_context;
    /* strings */
    int32_t not_string_mask, representation_mask, encoding_mask, one_byte, cons, external, sliced, thin;
    int32_t string_length, string_chars, cons_first, cons_second, sliced_parent, sliced_offset, thin_actual,
        external_resource;
    /* properties of ordinary objects */
    int32_t map_bit_field3, map_inobject_start, map_size_in_words, map_descriptors, descriptors_header;
    uint32_t own_descriptors_mask, own_descriptors_shift, dictionary_shift, property_index_mask,
        property_index_shift, property_location_mask, descriptor_size, descriptor_details;
    bool has_properties;
    /* The text of the object that carries V8, where its builtins lie: a return address in there belongs to the
     * interpreter, one outside every module to code made at run time. */
    uint64_t text_low, text_high;
};

/* Reads the exports; NULL without V8 or with a layout that cannot be known. Loader calls: start-up only. */
LAG_LOOP_THREAD void lag_v8_resolve(void);
LAG_ANY_THREAD const struct lag_v8_layout *lag_v8_layout(void);
LAG_ANY_THREAD bool lag_v8_is_present(void);
/* The isolate of the calling thread, 0 = none. */
LAG_LOOP_THREAD uint64_t lag_v8_current_isolate(void);
/* The calling thread, in its wait, has become the tenant of a slot: remembers its isolate, follows its collections, and
 * forgets it when its environment ends. */
LAG_LOOP_THREAD void lag_v8_loop_begins(uint32_t index, uint32_t generation, struct lag_loop_slot *slot);

struct lag_v8_loop {
    uint64_t isolate;
    uint64_t uv_loop;      /* 0 = unknown */
    uint64_t gc_since_ns;  /* of a collection in progress, 0 = none */
    uint32_t gc_count;     /* collections that have ended */
    bool follows_gc;
    bool can_interrupt;
};
/* False where the loop's thread has no isolate, or its environment has ended. */
LAG_ANY_THREAD bool lag_v8_loop_read(uint32_t index, uint32_t generation, struct lag_v8_loop *view);
/* Time of collections within the iteration that began at `start`, a running one included; false = not measured. */
LAG_ANY_THREAD bool lag_v8_gc_within(uint32_t index, uint32_t generation, uint64_t start, uint64_t *ns);

enum { LAG_V8_MAX_FRAMES = 64, LAG_V8_TEXT_BYTES = 12 << 10 };

/* One frame as V8's own stack trace has it; optimised code and inlined functions are exact there. */
struct lag_v8_frame {
    uint32_t function_offset, function_bytes;
    uint32_t file_offset, file_bytes;
    uint32_t line, column;
};

/* What the loop thread left at an interrupt: its stack below V8's runtime, and V8's own stack trace. */
struct lag_v8_answer {
    uint64_t entry_fp;   /* c_entry_fp at that moment, 0 = unknown */
    uint64_t asked_ns;
    struct lag_request_mark request;
    uint32_t collections; /* that had ended by then */
    uint32_t frame_count;
    uint32_t text_bytes;
    struct lag_v8_frame frames[LAG_V8_MAX_FRAMES];
    uint8_t texts[LAG_V8_TEXT_BYTES];
};

/* Whether this V8 exports what it takes to ask it for a stack trace. */
LAG_ANY_THREAD bool lag_v8_has_traces(void);
/* Asks the loop's isolate for an interrupt, which is served when its thread next runs JavaScript; 0 = it cannot be asked now.
 * One at a time: the next one takes the place of an answer that nobody fetched. */
LAG_ANY_THREAD uint64_t lag_v8_ask(uint32_t index, uint32_t generation, uint32_t entry_offset);
/* Whether it has been served. What `out` and `capture` point at stays as it is until the next one is asked for. */
LAG_ANY_THREAD bool lag_v8_answered(uint64_t cookie, const struct lag_v8_answer **answer,
                                    const struct lag_capture **capture);
/* Asks the loop's isolate for an interrupt and waits at most `timeout_ns`. Only while its thread runs JavaScript is it
 * served at once; one that comes later is dropped. `entry_offset`: where c_entry_fp lies in the isolate. */
LAG_ANY_THREAD bool lag_v8_interrupt(uint32_t index, uint32_t generation, uint32_t entry_offset, uint64_t timeout_ns,
                                     const struct lag_v8_answer **answer, const struct lag_capture **capture);

/* What the thread was at as it left its answer. */
LAG_ANY_THREAD struct lag_request_mark lag_v8_answer_request(void);

/* The characters of a V8 string as UTF-8, at most `capacity` bytes; -1 when it is no string that can be read. Reads
 * through lag_safe_read. */
LAG_ANY_THREAD long lag_v8_string(uint64_t tagged, uint8_t *into, size_t capacity);
/* Which of the properties of an incoming message this name is; 0 = none of them. */
enum { LAG_V8_URL = 1, LAG_V8_ORIGINAL_URL = 2, LAG_V8_METHOD = 3 };
LAG_ANY_THREAD int lag_v8_property_name(uint64_t tagged);
/* Counts line ends of a script's source before `position`: its line and column, 1-based; false = cannot be read. */
LAG_ANY_THREAD bool lag_v8_line(uint64_t source, uint64_t position, uint32_t *line, uint32_t *column);

/* The file that libuv was linked into, for its symbol table. */
struct lag_uv_module {
    uint64_t queue_work; /* uv_queue_work, 0 = no libuv */
    uint64_t bias;       /* run-time address minus the file's own */
};
LAG_ANY_THREAD const struct lag_uv_module *lag_v8_uv_module(void);
/* Opens that file; negative = not to be had. */
LAG_ANY_THREAD int lag_v8_uv_file(void);
/* The requests that all known loops have under way; false where no loop is known. */
LAG_ANY_THREAD bool lag_v8_active_requests(uint64_t *count);

/* ---- libuv's pool, where its own variables cannot be read (uv_probe.c) */

/* The threads that the pool has, or will have, by UV_THREADPOOL_SIZE as libuv reads it; a few dozen small reads. */
LAG_ANY_THREAD uint32_t lag_uv_threads(void);
/* Asks for one job through the pool of so many threads, which the main thread hands in at its next wait if the pool still is
 * full. False where there is no way, or while one is under way. */
LAG_ANY_THREAD bool lag_uv_probe_ask(uint32_t pool_threads);
/* Whether a job of ours is among the requests under way. */
LAG_ANY_THREAD bool lag_uv_probe_is_out(void);
/* How long the last job waited for a thread, told once; 0 = nothing new. */
LAG_ANY_THREAD uint64_t lag_uv_probe_take(void);

#pragma clang assume_nonnull begin
static inline const struct lag_v8_frame *lag_v8_answer_frame(const struct lag_v8_answer *answer, uint32_t i) {
    return &answer->frames[i < LAG_V8_MAX_FRAMES ? i : 0];
}
static inline const uint8_t *lag_v8_answer_texts(const struct lag_v8_answer *answer) { return answer->texts; }
#pragma clang assume_nonnull end

#endif
