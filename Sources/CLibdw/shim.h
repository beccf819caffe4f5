/* elfutils' libdw and libelf, as Swift can call them.
 *
 * Who calls it: LoopLagSymbols, on the thread of its StackDecoder. Nothing else lives here. */
#ifndef LOOPLAG_CLIBDW_SHIM_H
#define LOOPLAG_CLIBDW_SHIM_H

#include <dwarf.h>
#include <elfutils/libdw.h>
#include <gelf.h>
#include <libelf.h>
#include <stdint.h>

/* In Swift `dwarf_siblingof(&die, &die)` breaks the law of exclusivity; in C it is the documented way. */
static inline int lag_dw_advance_to_sibling(Dwarf_Die *die) { return dwarf_siblingof(die, die); }

#endif
