/* See the header: the kernel's own format of a signal frame, made by hand. Pure; arch/x86/kernel/signal_64.c reads it.
 */
#include "frame.h"

#include <cpuid.h>
#include <string.h>
#include <ucontext.h>

/* arch/x86/include/uapi/asm/sigcontext.h: what the kernel wants to find in the unused bytes of an FXSAVE image. */
struct software_bytes {
    uint32_t magic1, extended_size;
    uint64_t features;
    uint32_t size;
    uint32_t padding[7];
};

/* The frame of a real-time signal as the kernel lays it, without the siginfo that a return does not read. */
struct signal_frame {
    uint64_t restorer;
    ucontext_t context;
};

/* The bytes of extended state that the kernel takes back from this thread: it has no room for AMX tiles unless the
 * thread uses them, and refuses an image that is larger than its own. */
static uint32_t state_bytes(const uint8_t *state, uint32_t bytes, uint64_t *features) {
    uint64_t all, used;
    memcpy(&all, state + 464, 8);
    memcpy(&used, state + 512, 8);
    *features = all;
    const uint64_t tiles = 3ull << 17;
    if ((all & tiles) == 0 || (used & tiles) != 0) return bytes;
    *features = all & ~tiles;
    uint32_t most = 576;
    for (unsigned i = 2; i < 63; i++) {
        if ((*features >> i & 1) == 0) continue;
        unsigned size = 0, offset = 0, c, d;
        __cpuid_count(0xd, i, size, offset, c, d);
        if (offset + size > most) most = offset + size;
    }
    return most < bytes ? most : bytes;
}

bool lag_frame_build(const struct user_regs_struct *registers, const uint8_t *state, uint32_t bytes_of_state,
                     uint64_t mask, uint64_t restorer, uint8_t buffer[LAG_FRAME_MOST], struct lag_frame_place *place) {
    uint64_t features;
    uint32_t bytes = state_bytes(state, bytes_of_state, &features);
    if (bytes + 4 > LAG_FRAME_STATE_MOST) return false;

    /* From above: the red zone, the memory file's name, the extended state (64-aligned), the frame (16 n + 8). */
    uint64_t name = registers->rsp - 128 - 16;
    uint64_t image = (name - (bytes + 4)) & ~63ull;
    uint64_t frame = ((image - sizeof(struct signal_frame)) & ~15ull) - 8;
    size_t total = (size_t)(name + 16 - frame);
    if (total > (size_t)LAG_FRAME_MOST) return false;
    memset(buffer, 0, total);
    memcpy(buffer + (name - frame), "looplag-agent", 14);
    uint8_t *extended = buffer + (image - frame);
    memcpy(extended, state, bytes);
    struct software_bytes software = {0x46505853u, bytes + 4, features, bytes, {0}};
    memcpy(extended + 464, &software, sizeof software);
    uint32_t magic2 = 0x46505845u;
    memcpy(extended + bytes, &magic2, sizeof magic2);

    struct signal_frame *head = (struct signal_frame *)buffer;
    head->restorer = restorer;
    ucontext_t *context = &head->context;
    context->uc_flags = 7; /* UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS */
    /* No such mode: the kernel refuses it and leaves the thread's alternate stack as it is. */
    context->uc_stack.ss_flags = 0x4000;
    long long *general = context->uc_mcontext.gregs;
    general[REG_R8] = (long long)registers->r8;
    general[REG_R9] = (long long)registers->r9;
    general[REG_R10] = (long long)registers->r10;
    general[REG_R11] = (long long)registers->r11;
    general[REG_R12] = (long long)registers->r12;
    general[REG_R13] = (long long)registers->r13;
    general[REG_R14] = (long long)registers->r14;
    general[REG_R15] = (long long)registers->r15;
    general[REG_RDI] = (long long)registers->rdi;
    general[REG_RSI] = (long long)registers->rsi;
    general[REG_RBP] = (long long)registers->rbp;
    general[REG_RBX] = (long long)registers->rbx;
    general[REG_RDX] = (long long)registers->rdx;
    general[REG_RAX] = (long long)registers->rax;
    general[REG_RCX] = (long long)registers->rcx;
    general[REG_RSP] = (long long)registers->rsp;
    general[REG_RIP] = (long long)registers->rip;
    general[REG_EFL] = (long long)registers->eflags;
    general[REG_CSGSFS] = (long long)(0x33ull | 0x2bull << 48);
    context->uc_mcontext.fpregs = (void *)image;
    memcpy(&context->uc_sigmask, &mask, sizeof mask);
    *place = (struct lag_frame_place){.frame = frame, .bytes = total, .name = name};
    return true;
}
