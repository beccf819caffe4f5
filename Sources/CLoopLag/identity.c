/* What the agent's object says of itself to somebody who has it as a file and does not want to load it. */
#include "internal.h"

/* The layout that this agent writes. Data and not a function, so that the command line can read it from the ELF file
 * before it puts the object into a server. Exported by the preload object alone (exports.map). */
__attribute__((used, visibility("default"))) const uint32_t lag_agent_layout = LAG_ABI_VERSION;
