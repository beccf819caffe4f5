/* Compiles the layout's static assertions once; the layout itself is the header. */
#include "looplag_layout.h"
