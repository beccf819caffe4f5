/* ncursesw as a Swift module, with what its macros and the C locale keep from Swift as functions.
 *
 * Called by LoopLagTop, on the thread that owns the terminal. The wide-character interface is asked for here and not by
 * pkg-config, whose -D flags the package manager refuses.
 */
#ifndef LOOPLAG_CNCURSES_SHIM_H
#define LOOPLAG_CNCURSES_SHIM_H

#ifndef _XOPEN_SOURCE_EXTENDED
#define _XOPEN_SOURCE_EXTENDED 1
#endif
#define NCURSES_WIDECHAR 1

#include <langinfo.h>
#include <locale.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <wchar.h>
#include <ncursesw/curses.h>

/* In <wchar.h> only under _XOPEN_SOURCE, which an earlier include of it may have been without. */
extern int wcwidth(wchar_t character);

/* Makes the terminal's character set UTF-8 where that is possible: the environment's locale, or C.UTF-8 where that is
 * plain C (usual in containers). False leaves the program with ASCII. Changes the process's LC_CTYPE: call it once,
 * before other threads format text. */
static inline bool lag_curses_use_utf8(void) {
    static const char *const names[] = {"", "C.UTF-8", "C.utf8"};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (setlocale(LC_CTYPE, names[i]) && strcmp(nl_langinfo(CODESET), "UTF-8") == 0) return true;
    }
    return false;
}

/* Columns that ncurses will give a code point under the current LC_CTYPE; -1 for what it will not print. */
static inline int lag_curses_columns(uint32_t code_point) { return wcwidth((wchar_t)code_point); }

#endif
