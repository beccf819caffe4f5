/* ncursesw as a Swift module, with what its macros, its globals and the C locale keep from Swift as functions.
 *
 * Called by LoopLagTop, on the thread that owns the terminal. The wide-character interface is asked for here and not by
 * pkg-config, whose -D flags the package manager refuses. It holds the one signal handler of the command line: a crash
 * must not leave a person with a raw terminal. The handler writes a string made beforehand and puts the terminal's own
 * settings back, both async-signal-safe, and lets the crash go on.
 */
#ifndef LOOPLAG_CNCURSES_SHIM_H
#define LOOPLAG_CNCURSES_SHIM_H

#ifndef _XOPEN_SOURCE_EXTENDED
#define _XOPEN_SOURCE_EXTENDED 1
#endif
#define NCURSES_WIDECHAR 1

#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>
#include <ncursesw/curses.h>
#include <ncursesw/term.h>

/* In <wchar.h> only under _XOPEN_SOURCE, which an earlier include of it may have been without. */
extern int wcwidth(wchar_t character);

static inline bool lag_curses_is_utf8(const char *locale) {
    return setlocale(LC_CTYPE, locale) && strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}

/* Makes the terminal's character set UTF-8 where that is what the environment wants: its locale is, or says so and is
 * not installed, or nothing is said at all (usual in containers). False leaves the program with ASCII: a person who
 * sets LC_ALL=C means it. Changes the process's LC_CTYPE: call it once, before other threads format text. */
static inline bool lag_curses_use_utf8(void) {
    static const char *const variables[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    const char *wanted = NULL;
    for (unsigned i = 0; i < 3 && !wanted; i++) {
        const char *value = getenv(variables[i]);
        if (value && *value) wanted = value;
    }
    if (wanted && lag_curses_is_utf8("")) return true;
    bool isNamed = wanted && (strstr(wanted, "UTF-8") || strstr(wanted, "utf8") || strstr(wanted, "UTF8"));
    if (!wanted || isNamed) return lag_curses_is_utf8("C.UTF-8") || lag_curses_is_utf8("C.utf8");
    return false;
}

/* Columns that ncurses will give a code point under the current LC_CTYPE; -1 for what it will not print. */
static inline int lag_curses_columns(uint32_t code_point) { return wcwidth((wchar_t)code_point); }

/* ---- the terminal ----------------------------------------------------------------------------------------------- */

enum { LAG_CURSES_PLAIN, LAG_CURSES_GOOD, LAG_CURSES_FAIR, LAG_CURSES_BAD, LAG_CURSES_DIM, LAG_CURSES_BOLD };

struct lag_curses_crash {
    struct termios settings;
    bool has_settings;
    char text[256];
    size_t length;
    struct sigaction old[NSIG];
    char stack[32768];
};

static inline struct lag_curses_crash *lag_curses_crash_state(void) {
    static struct lag_curses_crash state;
    return &state;
}

static inline void lag_curses_on_crash(int number) {
    struct lag_curses_crash *state = lag_curses_crash_state();
    if (state->length && write(STDOUT_FILENO, state->text, state->length) < 0) {}
    if (state->has_settings) tcsetattr(STDIN_FILENO, TCSANOW, &state->settings);
    /* The same fault again, or the signal again, now with whatever was there before us. */
    sigaction(number, &state->old[number], NULL);
    raise(number);
}

static inline void lag_curses_crash_text(const char *capability) {
    struct lag_curses_crash *state = lag_curses_crash_state();
    const char *text = tigetstr((char *)capability);
    if (!text || text == (char *)-1) return;
    size_t length = strlen(text);
    /* A delay in a capability ($<5>) would be shown; no terminal of these days has one here. */
    if (strstr(text, "$<") || state->length + length > sizeof state->text) return;
    memcpy(state->text + state->length, text, length);
    state->length += length;
}

static inline void lag_curses_catch_crashes(void) {
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGTRAP, SIGFPE, SIGSYS, SIGQUIT};
    struct lag_curses_crash *state = lag_curses_crash_state();
    state->length = 0;
    lag_curses_crash_text("sgr0");
    lag_curses_crash_text("rmkx");
    lag_curses_crash_text("rmcup");
    lag_curses_crash_text("cnorm");
    stack_t stack = {.ss_sp = state->stack, .ss_size = sizeof state->stack};
    sigaltstack(&stack, NULL);
    for (unsigned i = 0; i < sizeof crashes / sizeof crashes[0]; i++) {
        struct sigaction action = {.sa_handler = lag_curses_on_crash, .sa_flags = SA_ONSTACK};
        sigemptyset(&action.sa_mask);
        sigaction(crashes[i], &action, &state->old[crashes[i]]);
    }
}

/* Whether the terminal that TERM names can place text at all. */
static inline bool lag_curses_can_place(void) {
    int status = 0;
    if (setupterm(NULL, STDOUT_FILENO, &status) != OK) return false;
    const char *place = tigetstr((char *)"cup");
    return place && place != (char *)-1 && !(tigetflag((char *)"hc") > 0);
}

static inline void lag_curses_colours(bool wanted) {
    if (!wanted || !has_colors()) return;
    start_color();
    int background = use_default_colors() == OK ? -1 : COLOR_BLACK;
    init_pair(LAG_CURSES_GOOD, COLOR_GREEN, background);
    init_pair(LAG_CURSES_FAIR, COLOR_YELLOW, background);
    init_pair(LAG_CURSES_BAD, COLOR_RED, background);
    if (COLORS >= 256) init_pair(LAG_CURSES_DIM, 244, background);
}

static inline bool *lag_curses_coloured(void) {
    static bool coloured;
    return &coloured;
}

/* Takes the terminal over; false when ncurses cannot. */
static inline bool lag_curses_open(bool colours) {
    struct lag_curses_crash *state = lag_curses_crash_state();
    state->has_settings = tcgetattr(STDIN_FILENO, &state->settings) == 0;
    if (!newterm(NULL, stdout, stdin)) return false;
    lag_curses_catch_crashes();
    cbreak();
    noecho();
    nonl();
    keypad(stdscr, TRUE);
    nodelay(stdscr, TRUE);
    intrflush(stdscr, FALSE);
    set_escdelay(25);
    curs_set(0);
    *lag_curses_coloured() = colours && has_colors();
    lag_curses_colours(colours);
    /* ncurses has a handler of its own for the stop; ours are blocked and taken one by one. */
    signal(SIGTSTP, SIG_DFL);
    return true;
}

static inline void lag_curses_close(void) {
    endwin();
    struct lag_curses_crash *state = lag_curses_crash_state();
    if (state->has_settings) tcsetattr(STDIN_FILENO, TCSADRAIN, &state->settings);
}

/* Back after a stop. */
static inline void lag_curses_resume(void) {
    reset_prog_mode();
    clearok(stdscr, TRUE);
    refresh();
}

/* The terminal's size now, told to ncurses. */
static inline void lag_curses_resize(void) {
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0) {
        resizeterm(size.ws_row, size.ws_col);
        clearok(stdscr, TRUE);
    }
}

static inline int lag_curses_rows(void) { return getmaxy(stdscr); }
static inline int lag_curses_width(void) { return getmaxx(stdscr); }

/* Clears first: text that fills the line leaves the cursor on the next one. */
static inline void lag_curses_start_line(int row) {
    move(row, 0);
    attrset(A_NORMAL);
    clrtoeol();
}

/* Appends text (in the locale's encoding) to the line. */
static inline void lag_curses_add(const char *text, int style, bool reversed) {
    attr_t attributes = reversed ? A_REVERSE : A_NORMAL;
    bool coloured = *lag_curses_coloured();
    if (style == LAG_CURSES_BOLD || (style == LAG_CURSES_BAD && !coloured)) attributes |= A_BOLD;
    if (style == LAG_CURSES_DIM && !(coloured && COLORS >= 256)) attributes |= A_DIM;
    short pair = 0;
    if (coloured && (style == LAG_CURSES_GOOD || style == LAG_CURSES_FAIR || style == LAG_CURSES_BAD)) pair = (short)style;
    if (coloured && style == LAG_CURSES_DIM && COLORS >= 256) pair = (short)style;
    attr_set(attributes, pair, NULL);
    addstr(text);
}

static inline void lag_curses_show(void) { refresh(); }
static inline void lag_curses_redraw(void) { clearok(stdscr, TRUE); }

/* The next key: 1 a character, 2 a function key, 0 none, -1 the terminal is gone. */
static inline int lag_curses_key(uint32_t *value) {
    wint_t key = 0;
    int kind = get_wch(&key);
    *value = (uint32_t)key;
    if (kind == KEY_CODE_YES) return 2;
    return kind == OK ? 1 : 0;
}

#endif
