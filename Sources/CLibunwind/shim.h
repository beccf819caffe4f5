/* libunwind for a remote address space, as Swift can call it.
 *
 * Who calls it: LoopLagSymbols, on the thread of its StackDecoder. The library's names are token-paste macros
 * (unw_step is _Ux86_64_step), which Swift cannot import: each one used is wrapped here. Nothing else lives here. */
#ifndef LOOPLAG_CLIBUNWIND_SHIM_H
#define LOOPLAG_CLIBUNWIND_SHIM_H

#include <libunwind.h>
#include <stdint.h>

/* Exported by the library, declared in none of its headers: finds the FDE of `ip` in a binary search table that is
 * read through the accessors. */
extern int _Ux86_64_dwarf_search_unwind_table(unw_addr_space_t space, unw_word_t ip, unw_dyn_info_t *info,
                                              unw_proc_info_t *result, int need_unwind_info, void *argument);

/* Missing from Swift's Glibc module. */
extern unsigned long getauxval(unsigned long type);

static inline unw_addr_space_t lag_unw_create(unw_accessors_t *accessors)
{
    return unw_create_addr_space(accessors, 0);
}

static inline void lag_unw_destroy(unw_addr_space_t space) { unw_destroy_addr_space(space); }

static inline void lag_unw_cache(unw_addr_space_t space, unsigned entries)
{
    unw_set_caching_policy(space, UNW_CACHE_GLOBAL);
    unw_set_cache_size(space, entries, 0);
}

static inline void lag_unw_flush(unw_addr_space_t space) { unw_flush_cache(space, 0, 0); }

static inline int lag_unw_init(unw_cursor_t *cursor, unw_addr_space_t space, void *argument)
{
    return unw_init_remote(cursor, space, argument);
}

static inline int lag_unw_step(unw_cursor_t *cursor) { return unw_step(cursor); }

static inline int lag_unw_register(unw_cursor_t *cursor, int number, uint64_t *value)
{
    unw_word_t word = 0;
    int result = unw_get_reg(cursor, number, &word);
    *value = word;
    return result;
}

static inline int lag_unw_is_signal_frame(unw_cursor_t *cursor) { return unw_is_signal_frame(cursor); }

/* One table of `entries` (start offset, FDE offset) pairs of int32 at `table`, both relative to `base`. */
static inline int lag_unw_search(unw_addr_space_t space, uint64_t ip, uint64_t start, uint64_t end, uint64_t base,
                                 uint64_t table, uint64_t entries, unw_proc_info_t *result, int need_unwind_info,
                                 void *argument)
{
    unw_dyn_info_t info = {0};
    info.start_ip = start;
    info.end_ip = end;
    info.format = UNW_INFO_FORMAT_REMOTE_TABLE;
    info.u.rti.segbase = base;
    info.u.rti.table_data = table;
    info.u.rti.table_len = entries * 8 / sizeof(unw_word_t);
    return _Ux86_64_dwarf_search_unwind_table(space, ip, &info, result, need_unwind_info, argument);
}

enum {
    LAG_UNW_ENOINFO = UNW_ENOINFO,
    LAG_UNW_EINVAL = UNW_EINVAL,
    LAG_UNW_EBADREG = UNW_EBADREG,
    LAG_UNW_EREADONLYREG = UNW_EREADONLYREG,
};

#endif
