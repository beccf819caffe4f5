/* Points the loaded objects' slots for the hooked calls at the hooks: what a linked or attached agent does instead of
 * being preloaded. Also what undoes it.
 *
 * Called at start by the host's thread and later by the watchdog, under the scan lock (a fork inside dl_iterate_phdr
 * would leave the loader's lock held in the child). Every word read is the loader's own, of objects that it holds
 * mapped during the iteration. dlopen is never wrapped: RUNPATH and namespace come from its return address.
 */
#include "internal.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

LAG_SMALL_CODE_BEGIN

/* The handle of the main program, whose search order is everybody's. RTLD_DEFAULT would find our own hooks first in an
 * injected object, since -Bsymbolic puts the object before the others in its own search order. */
static void *main_program(void) {
    struct r_debug *debug = dlsym(RTLD_DEFAULT, "_r_debug");
    return debug != NULL ? debug->r_map : NULL;
}

void lag_hooks_resolve(bool next_object) {
    void *everybody = next_object ? NULL : main_program();
    size_t count;
    const struct lag_hook *rows = lag_hooks(&count);
    lag_gil_wait_resolve(next_object);
    for (size_t i = 0; i < count; i++) {
        if (__atomic_load_n(rows[i].real, __ATOMIC_ACQUIRE) != NULL) continue;
        void *real = everybody != NULL ? dlsym(everybody, rows[i].name) : dlsym(RTLD_NEXT, rows[i].name);
        if (real == NULL) real = dlsym(RTLD_DEFAULT, rows[i].name);
        if (real != rows[i].replacement) __atomic_store_n(rows[i].real, real, __ATOMIC_RELEASE);
    }
}

struct object {
    uint64_t bias;
    const Elf64_Sym *symbols;
    const char *strings;
    uint64_t strings_bytes;
    uint64_t relro_low, relro_high;
    uint64_t span; /* of its file addresses: a slot that holds less is not relocated yet */
};

struct scan {
    uint32_t changed;
    uint32_t unready; /* slots that the loader is still relocating, or may overwrite with a lazy binding */
    bool restore;
    uint64_t adds, subs;
};

static uint64_t seen_adds, seen_subs;
static uint32_t unready_scans;
enum { UNREADY_SCANS = 8 }; /* what is not ready by then never will be */

/* What /proc/self/maps says of the page: 'w' writable, 'r' sealed, 0 unknown. */
static char page_protection(uint64_t address) {
    int fd = lag_file_open("/proc/self/maps");
    if (fd < 0) return 0;
    char buffer[8192];
    size_t held = 0;
    char answer = 0;
    for (;;) {
        long n = lag_file_next(fd, buffer + held, sizeof buffer - held - 1);
        if (n <= 0) break;
        held += (size_t)n;
        buffer[held] = 0;
        char *line = buffer, *end;
        while (answer == 0 && (end = memchr(line, '\n', held - (size_t)(line - buffer))) != NULL) {
            char *next = NULL;
            uint64_t low = strtoull(line, &next, 16);
            uint64_t high = next != NULL && *next == '-' ? strtoull(next + 1, &next, 16) : 0;
            if (address >= low && address < high && next != NULL && next + 2 < end)
                answer = next[2] == 'w' ? 'w' : 'r';
            line = end + 1;
        }
        if (answer != 0) break;
        held -= (size_t)(line - buffer);
        if (held >= sizeof buffer - 1) break; /* a line longer than the buffer: no mapping of ours */
        memmove(buffer, line, held);
    }
    lag_file_close(fd);
    return answer;
}

/* A slot under RELRO is stored to only once its page is sealed: while another thread's dlopen is still relocating it,
 * making the page read-only would crash the loader, and our value would be overwritten. It is found again next time. */
static void store_slot(const struct object *object, void **slot, void *value, struct scan *scan) {
    uint64_t address = (uint64_t)slot;
    bool under_relro = address >= object->relro_low && address < object->relro_high;
    if (!under_relro) {
        __atomic_store_n(slot, value, __ATOMIC_RELEASE);
        scan->changed += 1;
        return;
    }
    void *page = (void *)(address & ~(uint64_t)4095);
    if (page_protection(address) != 'r' || mprotect(page, 4096, PROT_READ | PROT_WRITE) != 0) {
        scan->unready += 1;
        return;
    }
    __atomic_store_n(slot, value, __ATOMIC_RELEASE);
    (void)mprotect(page, 4096, PROT_READ);
    scan->changed += 1;
}

static void visit_relocations(const struct object *object, const Elf64_Rela *rela, uint64_t bytes, struct scan *scan) {
    size_t hooks_count;
    const struct lag_hook *rows = lag_hooks(&hooks_count);
    for (uint64_t i = 0; i < bytes / sizeof *rela; i++) {
        uint32_t type = ELF64_R_TYPE(rela[i].r_info);
        if (type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT && type != R_X86_64_64) continue;
        uint32_t index = ELF64_R_SYM(rela[i].r_info);
        if (index == 0) continue;
        const Elf64_Sym *symbol = &object->symbols[index];
        if (symbol->st_shndx != SHN_UNDEF || symbol->st_name >= object->strings_bytes) continue;
        const char *name = object->strings + symbol->st_name;
        /* Cheap test first: a big object has a hundred thousand relocations. */
        if (name[0] != 'e' && name[0] != 'p' && name[0] != 's' && name[0] != '_') continue;
        for (size_t h = 0; h < hooks_count; h++) {
            if ((rows[h].family & lag_families) == 0 || strcmp(name, rows[h].name) != 0) continue;
            void **slot = (void **)(object->bias + rela[i].r_offset);
            void *real = *rows[h].real, *now = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
            if (real == NULL) break;
            if (scan->restore) {
                if (now == rows[h].replacement) store_slot(object, slot, real, scan);
            } else if (now == rows[h].replacement) {
                break;
            } else if (now == real) {
                store_slot(object, slot, rows[h].replacement, scan);
            } else if (object->bias != 0 && (uint64_t)now < object->span) {
                scan->unready += 1;
            } else if (type == R_X86_64_JUMP_SLOT && (uint64_t)now - object->bias < object->span) {
                /* Lazily bound to the object's own PLT. A thread that is inside the resolver for it at this moment will
                 * store libc's address over ours: look again. */
                store_slot(object, slot, rows[h].replacement, scan);
                scan->unready += 1;
            } /* else: somebody else's function, by intent */
            break;
        }
    }
}

static int visit_object(struct dl_phdr_info *info, size_t size, void *context) {
    struct scan *scan = context;
    if (size >= offsetof(struct dl_phdr_info, dlpi_subs) + sizeof info->dlpi_subs) {
        scan->adds = info->dlpi_adds;
        scan->subs = info->dlpi_subs;
    }
    const Elf64_Dyn *dynamic = NULL;
    struct object object = {.bias = info->dlpi_addr};
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const Elf64_Phdr *header = &info->dlpi_phdr[i];
        if (header->p_type == PT_LOAD && header->p_vaddr + header->p_memsz > object.span)
            object.span = header->p_vaddr + header->p_memsz;
        if (header->p_type == PT_DYNAMIC) dynamic = (const Elf64_Dyn *)(object.bias + header->p_vaddr);
        if (header->p_type == PT_GNU_RELRO) {
            object.relro_low = (object.bias + header->p_vaddr) & ~(uint64_t)4095;
            object.relro_high = (object.bias + header->p_vaddr + header->p_memsz) & ~(uint64_t)4095;
        }
    }
    if (dynamic == NULL) return 0;
    const Elf64_Rela *rela = NULL, *plt = NULL;
    uint64_t rela_bytes = 0, plt_bytes = 0, plt_type = 0;
    for (const Elf64_Dyn *entry = dynamic; entry->d_tag != DT_NULL; entry++) {
        switch (entry->d_tag) {
        case DT_SYMTAB: object.symbols = (const Elf64_Sym *)entry->d_un.d_ptr; break;
        case DT_STRTAB: object.strings = (const char *)entry->d_un.d_ptr; break;
        case DT_STRSZ: object.strings_bytes = entry->d_un.d_val; break;
        case DT_RELA: rela = (const Elf64_Rela *)entry->d_un.d_ptr; break;
        case DT_RELASZ: rela_bytes = entry->d_un.d_val; break;
        case DT_JMPREL: plt = (const Elf64_Rela *)entry->d_un.d_ptr; break;
        case DT_PLTRELSZ: plt_bytes = entry->d_un.d_val; break;
        case DT_PLTREL: plt_type = entry->d_un.d_val; break;
        }
    }
    /* glibc has relocated these pointers in place; the vdso's are still file addresses: leave it alone. */
    if (object.symbols == NULL || object.strings == NULL || (uint64_t)object.symbols < object.bias) return 0;
    if (rela != NULL) visit_relocations(&object, rela, rela_bytes, scan);
    if (plt != NULL && plt_type == DT_RELA) visit_relocations(&object, plt, plt_bytes, scan);
    return 0;
}

static uint32_t run_scan(bool restore) {
    struct scan scan = {.restore = restore};
    lag_scan_lock();
    /* The watchdog may have decided to patch just before it was told to end. */
    if (restore || lag_life_state() != LAG_LIFE_PARKED) dl_iterate_phdr(visit_object, &scan);
    unready_scans = scan.unready != 0 ? unready_scans + 1 : 0;
    /* After a restore everything is to be patched again, should the agent be wanted once more. */
    seen_adds = !restore && (scan.unready == 0 || unready_scans >= UNREADY_SCANS) ? scan.adds : 0;
    seen_subs = scan.subs;
    lag_scan_unlock();
    return scan.changed;
}

uint32_t lag_got_patch(void) { return run_scan(false); }
uint32_t lag_got_restore(void) { return run_scan(true); }

static int read_counts(struct dl_phdr_info *info, size_t size, void *context) {
    struct scan *scan = context;
    if (size >= offsetof(struct dl_phdr_info, dlpi_subs) + sizeof info->dlpi_subs) {
        scan->adds = info->dlpi_adds;
        scan->subs = info->dlpi_subs;
    }
    return 1;
}

bool lag_got_is_stale(void) {
    struct scan scan = {0};
    lag_scan_lock();
    dl_iterate_phdr(read_counts, &scan);
    lag_scan_unlock();
    return scan.adds != seen_adds || scan.subs != seen_subs;
}

LAG_SMALL_CODE_END
